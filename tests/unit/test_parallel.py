"""Lesson 07's data, predictions and chooser: data are read right, pictures' numbers follow closed formulas."""

import json
import math

import pytest

from helpers import layout_chooser, parallel_data, parallel_plots, parallel_shapes
from helpers.bench_report import servers
from helpers.bench_store import read_all
from helpers.calibration import MEASURED_FILE
from helpers.hardware import INFINIBAND_NDR, get_gpu
from helpers.layout_chooser import LATENCY, MEMORY, THROUGHPUT, choose
from helpers.memory import LayoutError, load, weight_bytes
from helpers.parallel_data import speed

BIG, SMALL = load("llama-3.1-70b"), load("llama-3.1-8b")


def in_file(run, concurrency, field="output_throughput"):
    entries = json.loads(MEASURED_FILE.read_text())["throughput"]
    return next(e[field] for e in entries if e["run"] == run and e["max_concurrency"] == concurrency)


@pytest.mark.parametrize(
    ("run", "row"), [("tp4", "TP4"), ("tp2pp2", "TP2 x PP2"), ("pp4", "PP4"), ("tp2dp2", "TP2 x DP2")]
)
def test_four_gpus_are_those_of_the_file(run, row):
    table = parallel_data.four_gpus()
    for concurrency in (1, 16, 128):
        assert speed(table, row, concurrency) == in_file(run, concurrency)
        assert speed(table, row, concurrency, "tpot_ms") == in_file(run, concurrency, "median_tpot_ms")
    assert len(table) == 12 and (table["repeats"] == 1).all()
    assert (table["tokens_per_second"] < table["bound"]).all()


def test_lengths_and_layouts_are_read_off_the_file():
    table = parallel_data.four_gpus().set_index(["row", "concurrency"])
    assert tuple(table.loc[("PP4", 1), ["input_len", "output_len"]]) == (128, 256)
    assert tuple(table.loc[("PP4", 16), ["input_len", "output_len"]]) == (512, 128)
    nodes = parallel_data.four_gpus(parallel_data.TWO_NODES)
    assert set(nodes["layout"]) == {"TP4 on 2 nodes", "TP2 x PP2 on 2 nodes"}
    assert speed(nodes, "TP4, two nodes", 64) == in_file("mn_tp4", 64)


def test_a_source_names_gpus_version_day_and_repeats():
    assert parallel_data.source(parallel_data.four_gpus()) == "4 x NVIDIA H200, vLLM 0.25.1, 2026-11-21, single runs"
    for model, day in (("llama-3.1-8b", "2026-11-21"), ("llama-3.1-70b", "2026-11-22")):
        assert parallel_data.source(parallel_data.two_gpus(model)).endswith(f"vLLM 0.25.1, {day}, medians of 3")


def test_with_one_request_bounds_are_those_of_reading():
    """Weights over tp x bandwidth, within 2% for the prompt, the cache and what no token reads, the embedding."""
    table = parallel_data.four_gpus()
    for row, tp in (("TP4", 4), ("TP2 x PP2", 2), ("TP2 x DP2", 2), ("PP4", 1)):
        reading = tp * get_gpu("H200").bandwidth / weight_bytes(BIG)
        assert speed(table, row, 1, "bound") == pytest.approx(reading, rel=0.02)


def test_what_an_all_reduce_costs():
    costs, eight, four = parallel_data.tp_costs(), parallel_data.two_gpus("llama-3.1-8b"), parallel_data.four_gpus()
    extra = speed(eight, "TP2", 1, "tpot_ms") - speed(eight, "TP1", 1, "tpot_ms") / 2
    assert costs.loc["8B, TP1 to TP2", "each_us"] == pytest.approx(1000 * extra / 64)
    extra = speed(four, "TP4", 1, "tpot_ms") - speed(four, "TP2 x DP2", 1, "tpot_ms") / 2
    assert costs.loc["70B, TP2 to TP4", "each_us"] == pytest.approx(1000 * extra / 160)
    assert costs["each_us"].idxmax() == "8B, TP1 to TP2, sockets"


def test_times_between_measured_sizes_lie_on_a_line():
    times = parallel_data.all_reduces()["sockets"]
    assert parallel_data.nearest(times, 8192) == times[8192]
    assert parallel_data.nearest(times, 12288) == pytest.approx((times[8192] + times[16384]) / 2)
    assert parallel_data.nearest(times, 2) == times.iloc[0] and parallel_data.nearest(times, 2**40) == times.iloc[-1]


def test_caches_printed_and_predicted():
    caches = parallel_data.caches()
    logs = json.loads(MEASURED_FILE.read_text())["server_log"]
    assert caches.loc["TP4", "printed"] == logs["tp4"]["gpu_kv_cache_tokens"][0]
    rows = servers(parallel_data.hosts()["llama-3.1-70b"]).set_index(["model", "row"])
    assert caches.loc["TP2 x DP2", "printed"] == 2 * rows.loc[("llama-3.1-70b", "TP2"), "kv_cache_tokens"]
    assert (caches["predicted"] / caches["printed"]).between(0.998, 1.002).all()
    lost = caches.loc["TP4", "printed"] - caches.loc["TP2 x DP2", "printed"]
    assert lost == pytest.approx(weight_bytes(BIG) / 327_680, rel=0.02)  # one more copy of the weights


def test_machines_are_not_mixed():
    """Two machines measured TP2 of the 70B: a table has the one with more measurements, and only that."""
    assert len(read_all(parallel_data.BENCH)) == 2
    (results,) = [each for each in read_all(parallel_data.BENCH) if each.machine["id"] == "056c18b8"]
    seventy = parallel_data.two_gpus("llama-3.1-70b")
    assert not seventy.duplicated(["row", "concurrency"]).any() and len(seventy) == 17
    of_this = [c["output_throughput"] for c in results.cells if c["row"] == "TP2" and c["concurrency"] == 128]
    assert speed(seventy, "TP2", 128) == sorted(of_this)[1]


def test_what_was_tried():
    tried = parallel_data.tried()
    assert {what for what, *_ in parallel_data.TRIED} == set(tried.index)
    kept = tried[tried["kept"].str.startswith("kept")]
    assert (kept["one"] > 1.02).all() and (kept["many"].dropna() > 0.99).all()
    assert tried.loc["whole experts (EP) on each GPU", "one"] < 1
    compiled = tried.loc["a graph compiled for one token"]
    assert set(zip(compiled["host"], compiled["model"], strict=True)) == {
        ("010b4ebf", "llama-3.1-8b"), ("010b4ebf", "llama-3.1-70b"), ("056c18b8", "llama-3.1-70b"),
    }  # fmt: skip
    assert compiled["start_s"].between(30, 60).all()


def test_messages():
    assert parallel_shapes.message_bytes(BIG, 1) == 16_384
    assert parallel_shapes.bandwidth_seconds(50e9, INFINIBAND_NDR) == 1
    assert parallel_shapes.bandwidth_seconds(50e9, INFINIBAND_NDR, ranks=4) == 1.5


def shifts_drawn(monkeypatch):
    seen = {}
    monkeypatch.setattr(parallel_plots, "shifts", lambda panels, *_: seen.update(panels))
    parallel_shapes.one_token(BIG, "H200", 4)
    return list(seen.values())


def test_stages_work_in_turn_and_ranks_together(monkeypatch):
    together, alone, full = shifts_drawn(monkeypatch)
    quarter = 1000 * weight_bytes(BIG) / 4 / get_gpu("H200").bandwidth
    assert together[0][2] == pytest.approx(quarter, rel=0.02)
    first = [bar for bar in alone if bar[3] == "a1"]
    assert [bar[0] for bar in first] == [0, 1, 2, 3] and first[-1][2] == pytest.approx(4 * together[0][2])
    for bars in (alone, full):  # no GPU does two things at once, no token is at two stages
        for key in (0, 3):
            for one in {bar[key] for bar in bars}:
                spans = sorted((bar[1], bar[2]) for bar in bars if bar[key] == one)
                assert all(a[1] <= b[0] + 1e-9 for a, b in zip(spans, spans[1:], strict=False))
    busy = sum(end - start for gpu, start, end, _ in full if gpu == 0)
    assert busy == pytest.approx(max(bar[2] for bar in full))  # the first GPU never rests


def test_pictures_have_a_label_for_those_who_do_not_see_them():
    mixture = load("minimax-m2.1")
    figures = [
        parallel_shapes.tensor_parallel(BIG, 4), parallel_shapes.who_holds_what(BIG, mixture),
        parallel_shapes.one_token(BIG, "H200", 4), parallel_shapes.messages(BIG), parallel_shapes.tp_costs(),
        layout_chooser.draw("llama-3.1-70b", "H200", 4, 4, LATENCY),
    ]  # fmt: skip
    assert all(len(figure.get_label()) > 40 for figure in figures)
    texts = " ".join(text.get_text() for text in figures[1].axes[0].texts)
    assert "160 all-reduces, 3.9 MB" in texts and "49.2 kB" in texts and "64 of 256 experts" in texts


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "each", "matters", "best"),
    [
        ("llama-3.1-70b", "H200", 4, 4, LATENCY, "TP4"),
        ("llama-3.1-70b", "H200", 4, 4, THROUGHPUT, "TP4"),
        ("llama-3.1-70b", "H200", 4, 4, MEMORY, "TP4"),
        ("llama-3.1-8b", "H200", 2, 2, LATENCY, "TP2"),
        ("llama-3.1-405b-fp8", "H100", 8, 4, LATENCY, "TP4 x PP2"),
    ],
)
def test_what_the_chooser_puts_first(model, gpu, gpus, each, matters, best):
    choice = choose(model, gpu, gpus, matters, each)
    assert choice.table.loc[0, "label"] == best and choice.table.loc[0, "fits"]
    assert choice.why.startswith(f"{best}: ")
    assert (choice.table["tp"] * choice.table["pp"] * choice.table["dp"] == gpus).all()


def test_measured_figures_stand_beside_the_bound_of_the_same_load():
    choice = choose("llama-3.1-70b", "H200", 4, LATENCY)
    rows, data = choice.table.set_index("label"), parallel_data.four_gpus()
    assert choice.load == (128, 256, 1)
    for row in ("TP4", "TP2 x PP2", "TP2 x DP2", "PP4"):
        assert rows.loc[row, "measured"] == speed(data, row, 1)
        assert rows.loc[row, "bound"] == pytest.approx(speed(data, row, 1, "bound"))
    assert math.isnan(rows.loc["PP2 x DP2", "measured"])
    assert choose("llama-3.1-70b", "H100", 4, LATENCY).table["measured"].isna().all()


def test_all_reduces_between_nodes_come_last_and_keep_no_measured_figure():
    table = choose("llama-3.1-8b", "H200", 2, LATENCY, gpus_per_node=1).table
    assert table["label"].iloc[-1] == "TP2" and table["crosses"].tolist() == [False, False, True]
    assert table["measured"].isna().all()  # those were measured over NVLink


def test_what_does_not_fit_says_so():
    choice = choose("llama-3.1-405b", "H100", 4, LATENCY)
    assert not choice.table["fits"].any() and choice.why.startswith("Nothing fits.")
    assert choose("llama-3.1-70b", "H200", 4, LATENCY).table.set_index("label").loc["DP4", "fits"] == False  # noqa: E712


def test_experts():
    table = choose("minimax-m2.1", "H200", 8, LATENCY).table.set_index("label")
    assert "TP8" not in table.index and "TP8 + EP" in table.index  # blocks of 128 in experts 1,536 wide
    assert table.loc[table["dp"] > 1, "bound"].isna().all() and table["bound"].notna().any()


def test_bad_input():
    with pytest.raises(LayoutError, match="do not fill"):
        choose("llama-3.1-8b", "H200", 6, LATENCY, gpus_per_node=4)
    figure = layout_chooser.draw("llama-3.1-8b", "H200", 6, 4, LATENCY)
    assert "do not fill" in figure.axes[0].texts[0].get_text().replace("\n", " ")


def test_a_dense_model_has_no_experts_to_share_out():
    with pytest.raises(LayoutError, match="llama-3.1-8b has no experts"):
        parallel_shapes.who_holds_what(load("llama-3.1-70b"), load("llama-3.1-8b"))


def test_the_widget_redraws_and_shows_without_a_kernel():
    panel = layout_chooser.chooser()
    before = panel._picture.value
    panel._controls["matters"].value = MEMORY
    assert panel._picture.value != before
    assert "image/png" in panel._repr_mimebundle_()
