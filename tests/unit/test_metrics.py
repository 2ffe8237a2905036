"""Metrics as real servers wrote them: the table, snapshots, rates, quantiles, and what is said when there are none.

The texts in metrics/ are of one server with 17 blocks (--num-gpu-blocks-override) and at most 8 requests at once:
before any request but its keeper's own, with ten at work, when the cache was full, and afterwards.
"""

import base64
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from helpers import gpu_load, metrics
from helpers.client import WrongKeyError
from helpers.gpu_load import GpuLoad
from helpers.metrics import MetricsError, Recording, Snapshot, parse, quantile, rates, record, snapshot, snapshot_of
from helpers.metrics_view import history, summary, watch

TEXTS = {file.stem: file.read_text() for file in (Path(__file__).parent / "metrics").glob("*.txt")}
FULL = Snapshot(
    time=2, running=5, waiting=5, kv_usage=1.0, kv_blocks=16, block_size=128, prompt_tokens=1379,
    generation_tokens=2366, prefix_queries=1379, prefix_hits=1024,
)  # fmt: skip


class Site:
    """A web server that answers /metrics with what `answers` says: (status, text), the last one again and again."""

    def __init__(self, *answers: tuple[int, str], seconds: float = 0):
        self.answers, self.asked, self.seconds = list(answers), [], seconds
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append((self.path, self.headers["Authorization"]))
                time.sleep(site.seconds)
                status, text = site.answers.pop(0) if len(site.answers) > 1 else site.answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def client(self, path: str = "/v1") -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.server.server_port}{path}", api_key="the-key", max_retries=0)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site():
    """Makes sites, and closes them."""
    made = []

    def make(*texts: str | tuple[int, str], seconds: float = 0) -> Site:
        made.append(Site(*((200, text) if isinstance(text, str) else text for text in texts), seconds=seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("metrics-")}


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the table and the snapshot -----------------------------------------------------------------------------------


def test_the_table_is_tidy():
    table = parse(TEXTS["after"])
    assert list(table.columns) == ["metric", "kind", "part", "value", "engine", "le", "labels"]
    assert set(table["kind"]) == {"gauge", "counter", "histogram"} and set(table["engine"]) == {"", "0"}
    assert not table["metric"].str.contains("created|python|http|:").any()
    value = table.set_index("metric")["value"]
    assert (value["generation_tokens"], value["num_preemptions"]) == (4401, 5)
    ended = table[table["metric"] == "request_success"]
    assert dict(zip(ended["labels"].str.get("finished_reason"), ended["value"], strict=True))["length"] == 12


def test_histograms_keep_their_parts_though_one_is_called_total():
    steps = parse(TEXTS["after"]).query("metric == 'iteration_tokens_total'")
    assert set(steps["part"]) == {"bucket", "sum", "count"}
    assert steps.loc[steps["part"] == "sum", "value"].item() == 4806
    assert steps.loc[steps["part"] == "bucket", "le"].max() == math.inf


def test_a_snapshot_is_what_the_server_said():
    assert snapshot_of(TEXTS["full"], 2) == FULL and FULL.blocks_used == 16
    busy, after = snapshot_of(TEXTS["busy"], 1), snapshot_of(TEXTS["after"], 3)
    assert (busy.running, busy.waiting, busy.kv_usage, busy.blocks_used) == (8, 2, 0.5625, 9)
    assert (after.running, after.kv_usage, after.generation_tokens, after.preemptions) == (0, 0, 4401, 5)


def test_engines_are_added_up():
    """As `-dp 2` writes them: every line twice, with engine 0 and 1."""
    lines = TEXTS["full"].splitlines()
    both = [line.replace('engine="0"', f'engine="{n}"') for line in lines for n in (0, 1) if n == 0 or line[0] != "#"]
    found = snapshot_of("\n".join(both), 2)
    assert (found.running, found.waiting, found.generation_tokens, found.kv_blocks) == (10, 10, 4732, 32)
    assert (found.kv_usage, found.blocks_used, found.block_size) == (1.0, 32, 128)


def test_a_metric_that_is_missing_is_named_and_not_taken_as_zero():
    text = TEXTS["full"].replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    with pytest.raises(MetricsError, match="lack kv_cache_usage_perc; this vLLM is of another version"):
        snapshot_of(text, 0)


# --- rates --------------------------------------------------------------------------------------------------------


def test_rates_are_of_what_was_done_between():
    between = rates(FULL, snapshot_of(TEXTS["after"], 12))
    assert between.seconds == 10
    assert between.prompt_tokens_per_second == pytest.approx((1685 - 1379) / 10)
    assert between.generation_tokens_per_second == pytest.approx((4401 - 2366) / 10)
    assert (between.prefix_hit_rate, between.preemptions) == (256 / 306, 5)


def test_a_server_that_was_restarted_counts_from_zero():
    between = rates(FULL, Snapshot(time=4, generation_tokens=100, prompt_tokens=1400, prefix_queries=10, prefix_hits=5))
    assert between.generation_tokens_per_second == 50
    assert between.prompt_tokens_per_second == 21 / 2
    assert between.prefix_hit_rate == 0.5


def test_rates_without_a_lookup_or_without_time():
    assert math.isnan(rates(FULL, Snapshot(time=3, prefix_queries=1379, prefix_hits=1024)).prefix_hit_rate)
    with pytest.raises(MetricsError, match="give the earlier one first"):
        rates(FULL, FULL)


# --- quantiles ----------------------------------------------------------------------------------------------------


def histogram(values: list[float], bounds: list[float]) -> pd.DataFrame:
    rows = [
        ("wait", "histogram", "bucket", sum(value <= le for value in values), "0", le, {}) for le in (*bounds, math.inf)
    ]
    return pd.DataFrame(rows, columns=["metric", "kind", "part", "value", "engine", "le", "labels"])


def test_a_quantile_lies_within_its_bucket_by_proportion():
    table = histogram([0.5] * 2 + [1.5] * 6 + [3] * 2, [1, 2, 4])
    assert quantile(table, "wait", 0.5) == 1 + 3 / 6
    assert quantile(table, "wait", 0.1) == 0.5
    assert quantile(table, "wait", 1) == 4
    assert quantile(table, "wait", 1, since=histogram([3, 3], [1, 2, 4])) == 2
    assert quantile(histogram([9] * 3, [1, 2]), "wait", 0.5) == 2, (
        "beyond the last bound nothing is known but the bound"
    )
    assert math.isnan(quantile(table, "wait", 0.5, since=table))


@given(st.lists(st.floats(0.01, 7.9), min_size=1, max_size=40), st.floats(0.01, 1))
@settings(deadline=None)
def test_a_quantile_is_never_further_off_than_its_bucket_is_wide(values, share):
    bounds = [1.0, 2.0, 4.0, 8.0]
    exact = sorted(values)[math.ceil(round(share * len(values), 9)) - 1]
    lower, upper = next((low, high) for low, high in zip([0.0, *bounds], bounds, strict=False) if exact <= high)
    assert lower <= quantile(histogram(values, bounds), "wait", share) <= upper


def test_a_real_servers_median():
    table = parse(TEXTS["after"])
    assert 0.04 < quantile(table, "time_to_first_token_seconds", 0.5) < 0.06
    with pytest.raises(MetricsError, match="no histogram 'ttft'; this server has .*time_to_first_token_seconds"):
        quantile(table, "ttft", 0.5)
    with pytest.raises(MetricsError, match="The share is 99"):
        quantile(table, "time_to_first_token_seconds", 99)


# --- asking a server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "asked"), [("/v1", "/metrics"), ("/node/7/v1/", "/node/7/metrics")])
def test_it_asks_beside_v1_with_the_key(site, base, asked):
    server = site(TEXTS["full"])
    found = snapshot(server.client(base))
    assert found.running == 5 and found.time == pytest.approx(time.monotonic(), abs=5)
    assert server.asked == [(asked, "Bearer the-key")]


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ((401, "{}"), WrongKeyError, "refuses this API key. Use the key of this server"),
        ((404, "<h1>no</h1>"), MetricsError, r"/metrics answers 404: this server has no metrics to read\.$"),
        ("<html>a home page</html>", MetricsError, "has nothing of vLLM's: .* --disable-log-stats"),
        ("# TYPE up gauge\nup 1.0\n", MetricsError, "has nothing of vLLM's"),
        ("", MetricsError, "has nothing of vLLM's"),
    ],
)
def test_a_server_without_metrics_is_named(site, answer, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        metrics.read(site(answer).client())
    assert "\n" not in str(caught.value)


def test_no_server_and_a_stuck_one_are_named(site, monkeypatch):
    gone = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x")
    with pytest.raises(MetricsError, match=r"No metrics from http://127.0.0.1:9/metrics\. Nothing answers"):
        snapshot(gone)
    monkeypatch.setattr(metrics, "PATIENCE", 0.1)
    with pytest.raises(MetricsError, match="no metrics within 0.1 s: the server is too busy"):
        snapshot(site(TEXTS["full"], seconds=0.5).client())


# --- over time ----------------------------------------------------------------------------------------------------


def test_a_recording_samples_while_the_block_works_and_no_longer(site):
    server = site(TEXTS["idle"], TEXTS["busy"], TEXTS["full"], TEXTS["after"])
    with record(server.client(), interval=0.05) as recording:
        wait_for(lambda: len(recording.snapshots) >= 5)
        assert len(recording.frame) >= 5
    frame, asked = recording.frame, len(server.asked)
    assert list(frame["running"][:4]) == [0, 8, 5, 0] and list(frame["blocks_used"][:4]) == [0, 9, 16, 0]
    assert frame.index[0] == 0 and frame.index.is_monotonic_increasing
    generated = frame["generation_tokens_per_second"] * frame.index.to_series().diff()
    assert generated.sum() == pytest.approx(4401 - 1) and math.isnan(frame["generation_tokens_per_second"].iloc[0])
    assert list(frame["preemptions"][:4]) == [0, 0, 0, 5]
    time.sleep(0.2)
    assert len(server.asked) == asked and not threads()


def test_a_reading_that_fails_is_left_out(site):
    server = site(TEXTS["idle"], (500, ""), "vllm:broken{", TEXTS["busy"])
    with record(server.client(), interval=0.02) as recording:
        wait_for(lambda: len(server.asked) >= 4)
    assert [s.running for s in recording.snapshots[:2]] == [0, 8]


def test_a_server_that_dies_meanwhile_is_named_and_the_recording_kept(site):
    server = site(TEXTS["idle"], TEXTS["busy"], (500, ""))
    with pytest.raises(MetricsError, match="answers 500"), record(server.client(), interval=0.02) as recording:
        wait_for(lambda: len(server.asked) >= 3)
    assert len(recording.frame) == 2 and not threads()


def test_what_fails_in_the_block_is_what_is_raised(site):
    server = site(TEXTS["idle"], (500, ""))
    with pytest.raises(KeyError, match="mine"), record(server.client(), interval=0.02):
        raise KeyError("mine")
    assert not threads()
    with pytest.raises(MetricsError, match="The interval is 0"), record(server.client(), interval=0):
        pass


# --- GPUs ---------------------------------------------------------------------------------------------------------


def test_only_this_machines_gpus_are_shown_beside_a_server():
    assert gpu_load.is_here("http://127.0.0.1:8000/v1") and gpu_load.is_here("http://localhost:8000/v1")
    assert not gpu_load.is_here("http://192.0.2.1:8000/v1") and not gpu_load.is_here("http://no.such.host.invalid/v1")


def test_gpus_hidden_from_this_job_are_left_out(monkeypatch):
    def visible(listed: str) -> list[int]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        return [i for i, uuid in enumerate(("GPU-aa1", "GPU-ab2", "GPU-b3")) if gpu_load._is_visible(i, uuid)]

    assert visible("0,2") == [0, 2] and visible("GPU-ab2") == [1] and visible("GPU-b") == [2] and visible("") == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_load._is_visible(7, "GPU-x")


def test_without_nvml_there_is_nothing_to_show():
    if gpu_load._nvml():
        assert all(0 <= load.utilisation <= 1 and 0 < load.used_gib <= load.total_gib for load in gpu_load.read())
    else:
        assert gpu_load.read() == []


def test_gpus_have_columns_of_their_own():
    one = [GpuLoad(2, "H200", 0.9, 100, 139.8), GpuLoad(3, "H200", 0.8, 101, 139.8)]
    recording = Recording([FULL, snapshot_of(TEXTS["after"], 3)], [one, one])
    assert list(recording.frame.columns[-4:]) == ["gpu_2", "gpu_2_gib", "gpu_3", "gpu_3_gib"]
    assert summary(recording)["gpus"] == "GPU at work: 90%, 80%"
    assert summary(recording)["memory"] == "GPU memory: 100, 101 of 140 GiB"
    assert len(history(recording).axes) == 6


# --- pictures -----------------------------------------------------------------------------------------------------


def a_recording(*names: str) -> Recording:
    return Recording([snapshot_of(TEXTS[name], at) for at, name in enumerate(names)], [[] for _ in names])


def test_the_still_says_the_peaks_and_the_means():
    recording = a_recording("idle", "busy", "full", "after")
    titles = [axis.get_title(loc="left") for axis in history(recording).axes]
    assert titles == [
        "requests: at most 8 running, 5 waiting, 5 preempted",
        "KV cache: at most 100%, 16 of 16 blocks",
        "tokens/s: on average 1,467 generated, 561 of prompts",
        "prefix cache: 76% hits",
    ]
    assert summary(recording)["requests"] == "requests: 0 running, 0 waiting, 5 preempted"
    assert summary(a_recording("busy"))["tokens"] == "tokens/s"
    with pytest.raises(MetricsError, match="The recording is empty"):
        history(Recording())


@pytest.fixture
def busy_site(site):
    return site(TEXTS["idle"], TEXTS["busy"], TEXTS["full"])


def test_the_view_keeps_up_without_being_asked_and_stops_when_told(busy_site):
    view = watch(busy_site.client(), interval=0.02)
    first = view._picture.value
    wait_for(lambda: "5 running, 5 waiting" in view._text.value)
    wait_for(lambda: view._picture.value != first)
    assert view.is_live
    view.stop()
    assert not view.is_live and not threads() and view._stop.disabled
    assert "<b>Stopped.</b>" in view._text.value
    bundle = view._bundle()
    assert base64.b64decode(bundle["image/png"]) == view._picture.value and "5 running" in bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_view_shown_again_ends_the_one_before(busy_site):
    first = watch(busy_site.client(), interval=0.05)
    with watch(busy_site.client(), interval=0.05) as second:
        wait_for(lambda: not first.is_live)
        assert second.is_live
    assert not second.is_live


def test_a_view_ends_with_its_server_and_with_its_time(site, busy_site):
    view = watch(site(TEXTS["idle"], (500, "")).client(), interval=0.02)
    wait_for(lambda: not view.is_live)
    assert "answers 500" in view._text.value
    view = watch(busy_site.client(), interval=0.02, minutes=0.001)
    wait_for(lambda: not view.is_live)
    assert "its time was up" in view._text.value


def test_what_is_older_than_the_window_is_forgotten():
    recording = a_recording("idle", "busy", "full", "after")
    recording.keep(1)
    assert [shot.time for shot in recording.snapshots] == [2, 3] and len(recording.gpus) == 2


def test_a_view_of_nothing_is_refused_in_the_cell(site):
    with pytest.raises(MetricsError, match="answers 404"):
        watch(site((404, "")).client())
    for settings_ in ({"interval": 0}, {"interval": 9, "window": 5}, {"minutes": 0}):
        with pytest.raises(MetricsError, match="leave nothing to see"):
            watch(site(TEXTS["idle"]).client(), **settings_)
    assert not threads()
