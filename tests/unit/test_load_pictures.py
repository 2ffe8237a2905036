"""Pictures of runs show what the records say, also for runs with failures, single tokens, or a single thread."""

import math
from array import array
from dataclasses import replace

import numpy as np
import pytest

from helpers import load_plots, load_stats
from helpers.load_records import LoadError, Record, Run
from helpers.metrics import Recording, Snapshot


def answered(index: int, worker: int, started: float, ttft: float, *gaps: float) -> Record:
    e2e = ttft + sum(gaps)
    return Record(index, started, started, ttft, e2e, array("d", gaps), 5, 1 + len(gaps), "stop", worker=worker)


QUEUE = Run([answered(0, 0, 0, 0.5, 1, 1), answered(1, 1, 0, 0.5, 0.5), answered(2, 1, 1, 0.5, 1)], 2.6, workers=2)
FAILED = Run([answered(0, 0, 0, 1), Record(1, 0, 0, math.nan, 0.3, error="It broke.", worker=2)], 1.0, workers=3)


def drawn(figure) -> None:
    """Draw it whole: what is wrong with a figure often shows only then."""
    figure.canvas.draw()
    assert len(figure.get_label()) > 30


def test_a_gantt_has_a_row_for_each_thread_and_a_bar_where_its_request_was():
    figure = load_plots.gantt({"queue": QUEUE, "with a failure": FAILED})
    drawn(figure)
    above, below = figure.axes
    assert above.get_title(loc="left") == "queue: 2.60 s"
    assert [tick.get_text() for tick in above.get_yticklabels()] == ["1", "2"]
    assert [tick.get_text() for tick in below.get_yticklabels()] == ["1", "2", "3"]
    outlines = [bar for bar in above.patches if not bar.get_fill()]
    assert [(bar.get_x(), bar.get_width()) for bar in outlines] == [(0, 2.5), (0, 1), (1, 1.5)]
    assert [text.get_text() for text in above.texts] == ["0", "1", "2"]
    assert {bar.get_hatch() for bar in below.patches} == {None, "///"}, "a failure is not told by colour alone"
    assert "queue: 3 requests on 2 threads, 2.60 seconds" in figure.get_label()


def test_many_requests_bear_no_numbers():
    many = Run([answered(i, 0, i, 0.1, 0.9) for i in range(load_plots.LABELLED + 1)], 50)
    assert not load_plots.gantt({"many": many}).axes[0].texts


def test_a_timeline_marks_each_piece_and_the_longest_gap():
    figure = load_plots.timeline(answered(0, 0, 3, 0.2, 0.1, 0.4, 0.1))
    drawn(figure)
    said = {text.get_text() for text in figure.axes[0].texts} - {""}
    assert said == {"TTFT 200 ms", "E2E 800 ms", "the longest ITL 400 ms"}
    marks = figure.axes[0].collections[0].get_segments()
    assert [segment[0][0] for segment in marks] == pytest.approx([0.2, 0.3, 0.7, 0.8])
    drawn(load_plots.timeline(answered(0, 0, 0, 0.2)))


@pytest.mark.parametrize("metric", ["ttft", "tpot", "itl", "e2e"])
def test_a_distribution_marks_mean_and_percentiles(metric):
    run = Run([answered(i, 0, 0, 0.1, 0.1 + (5 if i == 7 else 0)) for i in range(40)], 9)
    figure = load_plots.distribution(run, metric)
    drawn(figure)
    left, right = figure.axes
    found = load_stats.values(run, metric)
    expected = [found.mean(), *np.percentile(found, (50, 95, 99))]
    for axis in (left, right):
        assert [line.get_xdata()[0] for line in axis.lines[-4:]] == pytest.approx(expected)
    assert sum(bar.get_height() for bar in left.patches) == 40
    assert right.lines[0].get_ydata()[-1] == 1
    with pytest.raises(LoadError, match="was answered"):
        load_plots.distribution(Run([]), metric)


def test_in_flight_shows_the_mean_and_the_servers_count():
    law = load_stats.littles_law(QUEUE)
    run = replace(QUEUE, began=100.0)
    figure = load_plots.in_flight(run, law, Recording([Snapshot(99.5), Snapshot(101, running=2), Snapshot(102, 1, 1)]))
    drawn(figure)
    dots = figure.axes[0].lines[1]
    assert list(dots.get_xdata()) == [-0.5, 1, 2] and list(dots.get_ydata()) == [0, 2, 2], "on the run's clock"
    assert "L = 2.00; λ × W = 2.00" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    drawn(load_plots.in_flight(QUEUE, law))


def curve_runs() -> dict[int, Run]:
    """A server with four seats, a second for each answer."""
    runs = {}
    for n in (1, 4, 16):
        turn = max(n, 4) / 4
        records = [answered(i, i % n, turn * (i // n), turn - 0.5, 0.25, 0.25) for i in range(2 * n)]
        runs[n] = Run(records, max(record.ended for record in records), n)
    return runs


def test_the_curve_shows_its_bounds_and_its_knee():
    table = load_stats.curve(curve_runs())
    knee = load_stats.knee(table)
    assert knee.threads == pytest.approx(4)
    figure = load_plots.throughput_latency(table, knee)
    drawn(figure)
    bounds, measured, mark = figure.axes[0].lines
    assert list(bounds.get_xdata()) == pytest.approx([1, 4, 16]) and list(bounds.get_ydata()) == pytest.approx(
        [1, 4, 4]
    )
    assert list(measured.get_ydata()) == pytest.approx([1, 4, 4]) and mark.get_xdata()[0] == pytest.approx(4)
    assert "knee at 4.0 threads" in figure.get_label()


def test_goodput_stands_beside_throughput():
    figure = load_plots.goodput_curve(curve_runs(), ttft=1, tpot=0.3)
    drawn(figure)
    throughput, goodput = figure.axes[0].lines
    assert list(throughput.get_ydata()) == pytest.approx([1, 4, 4])
    assert list(goodput.get_ydata()) == pytest.approx([1, 4, 0]), "at 16 threads the first token comes too late"
    assert "16 threads: 0% good" in [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
