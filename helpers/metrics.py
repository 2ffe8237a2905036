"""What a vLLM server says of itself: its /metrics as a table, as a snapshot, and over time.

A gauge is a figure of this moment. A counter only grows, from the start of the server, so its use is the difference of
two readings. A histogram counts what took no longer than each of its buckets' bounds.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import openai
import pandas as pd
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from helpers import gpu_load
from helpers.client import WrongKeyError, explain, root_of
from helpers.errors import WorkshopError

PREFIX = "vllm:"
PATIENCE = 10  # seconds for one reading: a server in the middle of a large step may take its time
#: field of a Snapshot -> the metric it sums over the engines (one with data parallelism of 1)
SUMS = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "generation_tokens_total",
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_hits": "prefix_cache_hits_total",
    "preemptions": "num_preemptions_total",
}
USAGE, CACHE = "kv_cache_usage_perc", "cache_config_info"


class MetricsError(WorkshopError):
    """Metrics that cannot be had, or that cannot be used."""


@dataclass(frozen=True)
class Snapshot:
    """A server at one moment. `time` is seconds of time.monotonic(); the other figures are of all its engines together.

    Requests: `running`, `waiting`. Cache: `kv_usage` 0-1 of `kv_blocks` blocks of `block_size` tokens, by running
    requests alone: a block that is kept only for its prefix counts as free. Tokens since the server's start: in prompts,
    generated, looked up in the prefix cache and found there. `preemptions`: requests put back because blocks ran out, which
    vLLM counts when they run again.
    """

    time: float
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_blocks: int = 0
    block_size: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0

    @property
    def blocks_used(self) -> int:
        """Blocks that running requests hold."""
        return round(self.kv_usage * self.kv_blocks)


@dataclass(frozen=True)
class Rates:
    """What happened between two snapshots `seconds` apart. `prefix_hit_rate` (0-1) is NaN when nothing was looked up."""

    seconds: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prefix_hit_rate: float
    preemptions: int


def read(client: OpenAI) -> pd.DataFrame:
    """Every metric of vLLM's own, a row for each value. See `parse` for the columns.

    Raises WrongKeyError when the server refuses the key, else MetricsError when it has no metrics of vLLM's.
    """
    return parse(fetch(client))


def parse(text: str) -> pd.DataFrame:
    """A table of the text that /metrics answers: metric, kind, part, value, engine, le, labels.

    `metric` is without "vllm:". `kind` is gauge, counter or histogram; a histogram has the parts bucket (a count of what
    was at most `le`), sum and count. `labels` holds what other labels there are, as a dictionary.
    """
    rows = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and not sample.name.endswith("_created"):
                labels = dict(sample.labels)
                labels.pop("model_name", None)
                engine, le = labels.pop("engine", ""), float(labels.pop("le", "nan"))
                part = sample.name.removeprefix(family.name).strip("_") if family.type == "histogram" else ""
                name = family.name.removeprefix(PREFIX)
                rows.append((name, family.type, part, sample.value, engine, le, labels))
    return pd.DataFrame(rows, columns=["metric", "kind", "part", "value", "engine", "le", "labels"])


def quantile(table: pd.DataFrame, metric: str, share: float, since: pd.DataFrame | None = None) -> float:
    """The value of a histogram that a `share` (0-1) of the observations did not exceed; NaN when there were none.

    `since` is an earlier table: what happened before it is left out. Between the bounds of a bucket the observations are
    taken as evenly spread, and beyond the last bound nothing is known but the bound: Prometheus' histogram_quantile.
    Raises MetricsError for another share, and for a metric that is no histogram of this table.
    """
    if not 0 <= share <= 1:
        raise MetricsError(f"The share is {share}; the median is 0.5 and the 99th percentile 0.99.")
    counts = _buckets(table, metric) - (0 if since is None else _buckets(since, metric))
    total = counts.iloc[-1]
    if not total:
        return math.nan
    place = int((counts >= share * total).to_numpy().argmax())
    upper, (low, below) = counts.index[place], (counts.index[place - 1], counts.iloc[place - 1]) if place else (0.0, 0)
    if math.isinf(upper):
        return float(low)
    inside = counts.iloc[place] - below
    return float(low + (upper - low) * ((share * total - below) / inside if inside else 0))


def _buckets(table: pd.DataFrame, metric: str) -> pd.Series:
    """Observations up to each bound, of all engines, by bound."""
    rows = table[(table["metric"] == metric) & (table["part"] == "bucket")]
    if rows.empty:
        known = ", ".join(sorted(table.loc[table["kind"] == "histogram", "metric"].unique()))
        raise MetricsError(f"There is no histogram {metric!r}; this server has {known or 'none'}.")
    return rows.groupby("le")["value"].sum()


def snapshot(client: OpenAI) -> Snapshot:
    """The server at this moment. Raises what `read` raises."""
    return snapshot_of(fetch(client), time.monotonic())


def snapshot_of(text: str, at: float) -> Snapshot:
    """The snapshot that the text of /metrics gives, read at the time `at` (seconds).

    Raises MetricsError when one of its figures is missing.
    """
    found: dict[str, list[Sample]] = {}
    needed = tuple(f"{PREFIX}{name}{{" for name in (*SUMS.values(), USAGE, CACHE))
    ours = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(needed))  # parsing it all takes 20 ms
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix(PREFIX), []).append(sample)
    if missing := [metric for metric in (*SUMS.values(), USAGE) if metric not in found]:
        raise MetricsError(
            f"The server's metrics lack {missing[0]}; this vLLM is of another version than the workshop's."
        )
    sums = {name: int(sum(sample.value for sample in found[metric])) for name, metric in SUMS.items()}
    caches = [sample.labels for sample in found.get(CACHE, [])]
    # One block is vLLM's own, a placeholder that no request gets; the usage is a share of the others.
    blocks = [int(labels["num_gpu_blocks"]) - 1 for labels in caches if labels.get("num_gpu_blocks", "").isdigit()]
    size = caches[0].get("block_size", "") if caches else ""
    return Snapshot(
        time=at,
        kv_usage=sum(sample.value for sample in found[USAGE]) / len(found[USAGE]),
        kv_blocks=sum(blocks),
        block_size=int(size) if size.isdigit() else 0,
        **sums,
    )


def rates(before: Snapshot, after: Snapshot) -> Rates:
    """Tokens a second, prefix hits and preemptions from one snapshot to a later one.

    A counter that has fallen was begun anew, by a server that was restarted: all it has now is new.
    Raises MetricsError when the second snapshot is not later than the first.
    """
    seconds = after.time - before.time
    if seconds <= 0:
        raise MetricsError("The second snapshot is no later than the first; give the earlier one first.")

    def grown(counter: str) -> int:
        old: int = getattr(before, counter)
        new: int = getattr(after, counter)
        return new - old if new >= old else new

    queries = grown("prefix_queries")
    return Rates(
        seconds=seconds,
        prompt_tokens_per_second=grown("prompt_tokens") / seconds,
        generation_tokens_per_second=grown("generation_tokens") / seconds,
        prefix_hit_rate=grown("prefix_hits") / queries if queries else math.nan,
        preemptions=grown("preemptions"),
    )


@dataclass
class Recording:
    """Snapshots in the order they were taken, and beside each what the GPUs of this machine did (see gpu_load)."""

    snapshots: list[Snapshot] = field(default_factory=list)
    gpus: list[list[gpu_load.GpuLoad]] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each snapshot; the index is seconds since the first.

        running, waiting, kv_usage (0-1), blocks_used; prompt_tokens_per_second, generation_tokens_per_second and
        prefix_hit_rate (0-1) since the row before; preemptions since the beginning. With GPUs: gpu_N (0-1 of the time
        at work) and gpu_N_gib.
        """
        taken = list(zip(list(self.snapshots), list(self.gpus), strict=False))  # the thread may be adding one
        rows, preemptions = [], 0
        for number, (now, gpus) in enumerate(taken):
            change = rates(taken[number - 1][0], now) if number else Rates(0, math.nan, math.nan, math.nan, 0)
            preemptions += change.preemptions
            row = {name: getattr(now, name) for name in ("running", "waiting", "kv_usage", "blocks_used")}
            for name in ("prompt_tokens_per_second", "generation_tokens_per_second", "prefix_hit_rate"):
                row[name] = getattr(change, name)
            row["preemptions"] = preemptions
            for gpu in gpus:
                row |= {f"gpu_{gpu.index}": gpu.utilisation, f"gpu_{gpu.index}_gib": gpu.used_gib}
            rows.append(row)
        times = [now.time - taken[0][0].time for now, _ in taken]
        return pd.DataFrame(rows, index=pd.Index(times, name="seconds"))

    @property
    def gpus_seen(self) -> list[int]:
        """The numbers of the GPUs in the last row."""
        return [gpu.index for gpu in self.gpus[-1]] if self.gpus else []

    def keep(self, seconds: float) -> None:
        """Forget what is older than so many seconds before the last snapshot."""
        old = sum(snapshot.time < self.snapshots[-1].time - seconds for snapshot in self.snapshots)
        del self.snapshots[:old], self.gpus[:old]

    def take(self, client: OpenAI) -> None:
        """Add what there is now. Raises what `snapshot` raises."""
        now = snapshot(client)
        if not self.snapshots or now.time > self.snapshots[-1].time:
            self.gpus.append(gpu_load.read() if gpu_load.is_here(str(client.base_url)) else [])
            self.snapshots.append(now)


@contextmanager
def record(client: OpenAI, interval: float = 0.25) -> Iterator[Recording]:
    """Sample the server every `interval` seconds while the block runs, from its beginning to its end.

        with metrics.record(client) as recording:
            ...
        recording.frame

    A reading that fails is left out; the first and the last must succeed. Raises what `read` raises,
    and MetricsError for an interval of 0.
    """
    if interval <= 0:
        raise MetricsError(f"The interval is {interval}; give seconds above 0.")
    recording, over = Recording(), threading.Event()
    recording.take(client)

    def sample() -> None:
        while not over.wait(interval):
            with suppress(WorkshopError, ValueError):  # ValueError: a text that broke off
                recording.take(client)

    thread = threading.Thread(target=sample, daemon=True, name="metrics-record")
    thread.start()
    try:
        yield recording
    finally:
        over.set()
        thread.join(2 * PATIENCE)
    recording.take(client)


def fetch(client: OpenAI) -> str:
    """The text of /metrics, asked for with the client's key. The route lies beside /v1, not below it.

    Raises WrongKeyError or MetricsError.
    """
    url = f"{root_of(client)}/metrics"
    try:
        text = client.with_options(timeout=PATIENCE, max_retries=0).get(url, cast_to=str)
    except openai.AuthenticationError as error:
        raise WrongKeyError(explain(error)) from None
    except openai.APIStatusError as error:
        raise MetricsError(f"{url} answers {error.status_code}: this server has no metrics to read.") from None
    except openai.APITimeoutError:
        raise MetricsError(f"{url} gave no metrics within {PATIENCE} s: the server is too busy; try again.") from None
    except openai.APIError as error:
        raise MetricsError(f"No metrics from {url}. {explain(error)}") from None
    if not isinstance(text, str) or f"\n{PREFIX}" not in text:
        raise MetricsError(
            f"{url} has nothing of vLLM's: this is another server, or one started with --disable-log-stats."
        )
    return text
