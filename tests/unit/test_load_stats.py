"""Statistics of runs: against vLLM's own, against sums done by hand, and Little's law."""

import math
from array import array

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import load_stats
from helpers.load_records import LoadError, Record, Run

seconds = st.floats(0.001, 30)


def answered(started: float, ttft: float, *gaps: float, tokens: int | None = None, **more) -> Record:
    """A request whose answer came in pieces with these gaps between them, a token each unless said."""
    e2e = ttft + sum(gaps)
    return Record(0, started, started, ttft, e2e, array("d", gaps), 10, tokens or 1 + len(gaps), "stop", **more)


@st.composite
def runs(draw, least: int = 1) -> Run:
    records = [
        answered(draw(st.floats(0, 60)), draw(seconds), *draw(st.lists(seconds, max_size=4)))
        for _ in range(draw(st.integers(least, 12)))
    ]
    return Run(records, max(r.ended for r in records), done=len(records))


@pytest.fixture(scope="module")
def serve():
    """vLLM's own module; importing it takes seconds."""
    from vllm.benchmarks import serve

    return serve


@settings(deadline=None)
@given(runs())
def test_the_figures_are_those_of_vllm_bench_serve(serve, run):
    outputs = [
        serve.RequestFuncOutput(
            success=True, latency=r.e2e, output_tokens=r.output_tokens, ttft=r.ttft, itl=list(r.itl),
            prompt_len=r.prompt_tokens, start_time=r.started,
        )
        for r in run
    ]  # fmt: skip
    limits = {"ttft": 5000.0, "tpot": 2000.0}
    theirs, _ = serve.calculate_metrics([], outputs, run.seconds, None, [95.0, 99.0], limits)
    ours = load_stats.percentiles(run)
    for metric in ours.index:
        name = {"E2E": "e2el"}.get(metric, metric.lower())
        assert ours.loc[metric, "mean"] == pytest.approx(getattr(theirs, f"mean_{name}_ms"))
        assert ours.loc[metric, "p50"] == pytest.approx(getattr(theirs, f"median_{name}_ms"))
        assert [ours.loc[metric, f"p{s}"] for s in (95, 99)] == pytest.approx(
            [value for _, value in getattr(theirs, f"percentiles_{name}_ms")]
        )
    assert load_stats.goodput(run, ttft=5, tpot=2) == pytest.approx(theirs.request_goodput)
    said = load_stats.throughput(run)
    assert said["requests_per_second"] == pytest.approx(theirs.request_throughput)
    assert said["output_tokens_per_second"] == pytest.approx(theirs.output_throughput)
    assert said["tokens_per_second"] == pytest.approx(theirs.total_token_throughput)


def test_failed_requests_are_failures_and_nothing_else():
    run = Run([answered(0, 1, 1), Record(1, error="no", ttft=0.001, e2e=0.002, output_tokens=900)], 2.0)
    assert load_stats.percentiles(run).loc["TTFT", "mean"] == 1000
    assert load_stats.throughput(run) == {
        "requests_per_second": 0.5, "output_tokens_per_second": 1.0, "tokens_per_second": 6.0,
    }  # fmt: skip
    assert list(load_stats.met(run, ttft=9, tpot=9)) == [True, False]


def test_a_run_without_answers_says_so():
    for run in (Run([]), Run([Record(0, error="no")])):
        with pytest.raises(LoadError, match="No request of this run was answered"):
            load_stats.percentiles(run)
    assert load_stats.goodput(Run([]), ttft=1, tpot=1) == load_stats.throughput(Run([]))["requests_per_second"] == 0
    with pytest.raises(LoadError, match="no metric 'latency'"):
        load_stats.values(Run([]), "latency")


def test_single_tokens_have_no_row_of_tpot():
    assert list(load_stats.percentiles(Run([answered(0, 1)], 1)).index) == ["TTFT", "E2E"]


# --- Little's law --------------------------------------------------------------------------------------------------


@given(runs())
def test_the_law_holds_on_every_whole_run(run):
    law = load_stats.littles_law(run)
    assert law["L, mean in flight"] == pytest.approx(law["lambda x W"])


def test_in_a_part_of_a_run_it_holds_but_for_the_edges():
    steady = Run([answered(0.1 * i, 0.1, 0.4) for i in range(1000)], 100.4)
    law = load_stats.littles_law(steady, 20, 80)
    assert law["L, mean in flight"] == pytest.approx(5, abs=0.05)
    assert law["lambda x W"] == pytest.approx(5, abs=0.05)
    cut = load_stats.littles_law(Run([answered(0, 10)], 10), 0, 1)
    assert cut["L, mean in flight"] == 1 and cut["lambda x W"] == 10, "its answer reaches far over the edge"


def test_what_is_in_flight_is_counted():
    run = Run([answered(0, 1, 1), answered(1, 3), answered(2, 1)], 4)
    counted = load_stats.in_flight(run)
    assert counted.to_dict() == {0: 1, 1: 2, 2: 2, 3: 1, 4: 0}
    assert load_stats.mean_over_time(counted, 0, 4) == pytest.approx((1 + 2 + 2 + 1) / 4)
    assert load_stats.mean_over_time(counted, 1.5, 3.5) == pytest.approx((0.5 * 2 + 2 + 0.5 * 1) / 2)
    assert load_stats.mean_over_time(counted, -4, 0) == 0


@given(runs(least=2), st.floats(0, 1), st.floats(0, 1))
def test_the_integral_is_that_of_a_fine_grid(run, a, b):
    counted = load_stats.in_flight(run)
    span = counted.index[-1] - counted.index[0]
    begin, end = (counted.index[0] + share * span for share in sorted((a, b)))
    assume(end - begin > 0.01)
    grid = np.linspace(begin, end, 20001)[:-1]
    places = np.searchsorted(counted.index, grid, side="right") - 1
    assert load_stats.mean_over_time(counted, begin, end) == pytest.approx(counted.to_numpy()[places].mean(), abs=0.02)


@pytest.mark.parametrize(("begin", "end"), [(2, 2), (3, 1)])
def test_no_time_at_all_is_refused(begin, end):
    with pytest.raises(LoadError, match="no time at all"):
        load_stats.littles_law(Run([answered(0, 5)], 5), begin, end)
    with pytest.raises(LoadError, match="no requests"):
        load_stats.littles_law(Run([]))


# --- goodput and the curve -----------------------------------------------------------------------------------------


def test_both_limits_must_be_met():
    run = Run(
        [answered(0, 1, 0.1, 0.1), answered(0, 3, 0.1), answered(0, 1, 0.5, 0.5), answered(0, 3, 0.5), answered(0, 1)],
        2,
    )
    assert list(load_stats.met(run, ttft=2, tpot=0.2)) == [True, False, False, False, True]
    assert load_stats.goodput(run, ttft=2, tpot=0.2) == 1.0
    assert load_stats.goodput(run, ttft=1, tpot=0.5) == 1.5, "a limit that is just met is met"


def ideal(threads: int, seats: int, alone: float = 2.0, count: int = 64) -> Run:
    """A server with so many seats, each of which answers in `alone` seconds; `threads` requests are always there."""
    free, sent, records = [0.0] * seats, [0.0] * threads, []
    for _ in range(count):
        begin, seat = min(sent), free.index(min(free))
        end = max(begin, free[seat]) + alone
        free[seat] = end
        sent[sent.index(begin)] = end
        records.append(answered(begin, end - begin - alone / 2, alone / 2))
    return Run(records, max(free), threads)


def test_the_knee_of_a_server_with_eight_seats_is_at_eight():
    table = load_stats.curve({n: ideal(n, seats=8) for n in (32, 1, 4, 8, 16)})
    knee = load_stats.knee(table)
    assert knee.threads == pytest.approx(8) and knee.alone == 2 and knee.peak == pytest.approx(4)
    assert list(table.index) == [1, 4, 8, 16, 32]
    assert table["requests_per_second"].tolist() == pytest.approx([0.5, 2, 4, 4, 4])
    assert table.loc[8, "e2e_mean"] == pytest.approx(2) and table.loc[32, "e2e_p95"] == pytest.approx(8)
    assert table.loc[8, "in_flight"] == pytest.approx(8)
    with pytest.raises(LoadError, match="one thread"):
        load_stats.knee(table.loc[4:])


def test_a_failed_request_that_never_began_disturbs_nothing():
    run = Run([answered(0, 1, 1), Record(1)], 2)
    assert math.isnan(run[1].ended)
    assert load_stats.littles_law(run)["L, mean in flight"] == 1
