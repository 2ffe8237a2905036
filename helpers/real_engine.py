"""The simulator's requests sent to a real vLLM server, and what both did on one picture.

A simulator counts steps and a server takes seconds; what both have written so far can be compared token by token.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import openai
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from openai import OpenAI, Stream
from openai.types import Completion

from helpers import metrics, plots
from helpers.client import client_for, explain, root_of
from helpers.errors import WorkshopError
from helpers.metrics import Recording
from helpers.scheduler import Request
from helpers.server import Server, ServerError, start
from helpers.trace import Trace

BLOCK_SIZE = 128  # tokens, the default of vLLM's CPU server
VOCABULARY = range(300, 4096)  # ids of whole words of the small Llama: no marks, no single bytes


class EngineError(WorkshopError):
    """The server could not do this work."""


def workload(lengths: Mapping[str, tuple[int, int]], *, shared: int = 0, seed: int = 0) -> list[Request]:
    """A request for each id -> (prompt tokens, tokens to write). The prompts are random tokens, the first `shared` the same."""
    generator = np.random.default_rng(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(generator.integers(VOCABULARY.start, VOCABULARY.stop, count).tolist())

    beginning = draw(shared)
    return [Request(name, beginning + draw(prompt - shared), output) for name, (prompt, output) in lengths.items()]


def start_servers(*, blocks: int, max_num_seqs: Sequence[int]) -> list[Server]:
    """A server on this machine for each number of seats, started side by side, with `blocks` blocks of 128 tokens.

    `connect()` does not find them. They end with this process, or with `Server.stop()`.
    Raises ServerError with the cause and the mend.
    """

    def begin(seats: int) -> Server:
        flags = f"--num-gpu-blocks-override {blocks} --max-num-seqs {seats} --block-size {BLOCK_SIZE}"
        # Requests that come in together are queued by chance; priorities keep the order in which they were given. And a
        # route for developers (behind the key, as all are) holds the scheduler until every one is there.
        flags += " --scheduling-policy priority"
        flags += " --stream-interval 4096"  # the first token and the rest: reading all of them one by one costs time
        return start(flags=flags.split(), private=True, quiet=True, environment={"VLLM_SERVER_DEV_MODE": "1"})

    with ThreadPoolExecutor(len(max_num_seqs)) as pool:
        starting = [pool.submit(begin, seats) for seats in max_num_seqs]
        try:
            return [one.result() for one in starting]
        except BaseException:  # Ctrl-C as well: what has been started must not stay
            for one in starting:
                with suppress(ServerError):
                    one.result().stop()
            raise


@dataclass
class Run:
    """What a server did with some requests: the seconds from the first to the last, and a recording of its metrics."""

    seconds: float = 0.0
    finish_order: list[str] = field(default_factory=list)
    recording: Recording = field(default_factory=Recording)

    def _grown(self, counter: str) -> int:
        first, last = self.recording.snapshots[0], self.recording.snapshots[-1]
        return int(getattr(last, counter) - getattr(first, counter))

    @property
    def peak_blocks(self) -> int:
        """Most blocks that a look at the gauge found in use."""
        return max(snapshot.blocks_used for snapshot in self.recording.snapshots)

    @property
    def preemptions(self) -> int:
        """How often a request was put back."""
        return self._grown("preemptions")

    @property
    def prefix_hits(self) -> int:
        """Prompt tokens found in the cache."""
        return self._grown("prefix_hits")

    @property
    def tokens_per_second(self) -> float:
        """Tokens written, of all requests."""
        return self._grown("generation_tokens") / self.seconds


def serve(client: OpenAI | Server, requests: Sequence[Request], *, interval: float = 0.05) -> Run:
    """Give these requests to the server, all there before its next step, and look at it until the last one is done.

    They stand in its queue in their order; the server is asked how it is every `interval` seconds. It must be one of
    `start_servers`, for it is paused while they come in.
    Raises EngineError when a request fails or has no token ids (see `workload`), and what metrics.read raises.
    """
    prompts = [_ids(request) for request in requests]
    if isinstance(client, Server):
        client = client_for(client.connection)
    run, tokens = Run(), sum(request.output for request in requests)
    try:
        model = client.models.list().data[0].id
        with metrics.record(client, interval) as run.recording, ThreadPoolExecutor(len(requests)) as pool:
            with _paused(client):
                asked = enumerate(zip(requests, prompts, strict=True))
                streams = [_ask(client, model, prompt, request.output, place) for place, (request, prompt) in asked]
                reading = [pool.submit(_last_moment, *each) for each in zip(requests, streams, strict=True)]
            began = time.monotonic()
            ends = {request.id: one.result() for request, one in zip(requests, reading, strict=True)}
            _settle(client, run.recording.snapshots[0].generation_tokens + tokens)
    except openai.APIError as error:
        raise EngineError(explain(error)) from None
    run.seconds = max(ends.values()) - began
    run.finish_order = sorted(ends, key=ends.__getitem__)
    return run


@contextmanager
def _paused(client: OpenAI) -> Iterator[None]:
    """The engine takes requests in and computes nothing. Raises EngineError for a server that cannot be paused."""
    root = root_of(client)
    try:
        client.post(f"{root}/pause", cast_to=object, options={"params": {"mode": "keep"}})
    except openai.NotFoundError:
        raise EngineError("This server cannot be paused; use one of real_engine.start_servers().") from None
    try:
        yield
        client.get(f"{root}/is_paused", cast_to=object)  # answered by the engine, after the requests before it
    finally:
        client.post(f"{root}/resume", cast_to=object)


def _ids(request: Request) -> list[int]:
    if isinstance(request.prompt, int):
        raise EngineError(
            f"Request {request.id!r} tells its prompt's length and not its tokens: make it with workload()."
        )
    return list(request.prompt)


def _ask(client: OpenAI, model: str, prompt: list[int], output: int, place: int) -> Stream[Completion]:
    """A stream of exactly `output` tokens. A smaller `place` is served first."""
    return client.completions.create(
        model=model, prompt=prompt, max_tokens=output, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True, "priority": place},
    )  # fmt: skip


def _last_moment(request: Request, stream: Stream[Completion]) -> float:
    """When its last token came, as time.monotonic()."""
    end, written = 0.0, 0
    for chunk in stream:
        if chunk.choices:
            end = time.monotonic()
        if chunk.usage:
            written = chunk.usage.completion_tokens
    if written != request.output:
        raise EngineError(
            f"Request {request.id!r} got {written} of {request.output} tokens: prompt and answer must fit in the server's context."
        )
    return end


def _settle(client: OpenAI, tokens: int, patience: float = 10) -> None:
    """Counters follow the last answer by a moment."""
    deadline = time.monotonic() + patience
    while (now := metrics.snapshot(client)).generation_tokens < tokens or now.running:
        if time.monotonic() > deadline:
            raise EngineError("The server counts other tokens than these requests': somebody else uses it too.")
        time.sleep(0.05)


def compare(trace: Trace, run: Run) -> pd.DataFrame:
    """What the simulator says and what vLLM did, a row for each figure."""
    rows = {
        "most blocks in use": (trace.peak_reported, run.peak_blocks),
        "preemptions": (trace.preemptions, run.preemptions),
        "prompt tokens found": (trace.prefix_hits, run.prefix_hits),
        "order of finishing": (" ".join(trace.finish_order), " ".join(run.finish_order)),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["simulator", "vLLM"])


def progress(trace: Trace) -> pd.DataFrame:
    """blocks, running and waiting after each step, as an engine reports them; the index is tokens written so far."""
    rows, written = [(0, 0, 0, 0)], 0
    for record in trace.steps:
        kinds = [event[0] for event in record["events"]]
        firsts = sum(kind == "prefill" and tokens[1] == 0 for kind, _, *tokens in record["events"])
        for i in range(record["count"]):
            written += record["decode"] + (firsts if i == 0 else 0)
            running = record["running"] - (kinds.count("finish") if i == 0 else 0)
            rows.append((written, record["blocks_after"], running, record["waiting"]))
    return pd.DataFrame(rows, columns=["written", "blocks", "running", "waiting"]).set_index("written")


def beside(pairs: Mapping[str, tuple[Trace, Run]]) -> Figure:
    """For each name a column: the simulator's prediction as lines, what vLLM reported as dots, over tokens written."""
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            2, len(pairs), figsize=(7.4, 4), sharey="row", squeeze=False, label="vLLM's figures beside the simulator's"
        )
    plt.close(figure)
    for (blocks, requests), (name, (trace, run)) in zip(axes.T, pairs.items(), strict=True):
        predicted, seen = progress(trace), _seen(run)
        _overlay(blocks, predicted, seen, {"blocks": plots.BLUE})
        _overlay(requests, predicted, seen, {"running": plots.GREEN, "waiting": plots.ORANGE})
        blocks.set_title(f"{name}: {run.seconds:.1f} s, {run.tokens_per_second:,.0f} tokens/s", loc="left", fontsize=10)
        blocks.axhline(trace.settings["blocks"] - 1, color=plots.GREY, linestyle=":", linewidth=1)
        requests.set_xlabel("tokens written so far")
    for axis in axes[:, 0]:  # the others of its row share the scale
        axis.set_ylim(bottom=0)
        axis.locator_params("y", integer=True)
    axes[0][0].set_ylabel("blocks in use\n(dotted: all there are)")
    axes[1][0].set_ylabel("requests")
    axes[1][0].legend(fontsize=8, frameon=False)
    return figure


def _seen(run: Run) -> pd.DataFrame:
    shots = run.recording.snapshots
    rows = [
        (shot.generation_tokens - shots[0].generation_tokens, shot.blocks_used, shot.running, shot.waiting)
        for shot in shots
    ]
    return pd.DataFrame(rows, columns=["written", "blocks", "running", "waiting"]).set_index("written")


def _overlay(axis: Axes, predicted: pd.DataFrame, seen: pd.DataFrame, colors: Mapping[str, str]) -> None:
    for (column, color), marker in zip(colors.items(), "os", strict=False):
        axis.step(
            predicted.index,
            predicted[column],
            where="post",
            color=color,
            linewidth=3,
            alpha=0.35,
            label=f"{column}, simulated",
        )
        axis.plot(seen.index, seen[column], marker, color=color, markersize=3.5, label=f"{column}, vLLM")
