"""Tables, bounds, ratios and pictures from results alone: written here by hand, and those kept in the repository."""

import json
import math
from dataclasses import replace

import pytest

from helpers import bench, bench_plots, bench_report
from helpers.bench_checks import placed
from helpers.bench_links import matrices, matrix_seconds, talking
from helpers.bench_matrix import Cell, described, parse, read
from helpers.bench_store import Store, read_all
from helpers.hardware import get_gpu
from helpers.models import load
from helpers.parallel_data import BENCH, FOUR
from helpers.roofline import decode_seconds, decode_tokens_per_second
from helpers.weights import active_parameter_count

MACHINE = {
    "id": "0a", "name": "2x-NVIDIA-H200", "gpus": ["NVIDIA H200"] * 2, "driver": "580", "cores": 32, "processor": "x",
    "versions": {"vllm": "0.25.1"},
}  # fmt: skip
SPEEDS = {"TP1": [200.0, 210.0, 190.0], "TP2": [300.0, 330.0, 270.0]}


@pytest.fixture
def folder(tmp_path):
    store = Store(tmp_path, MACHINE)
    rows = [{"name": "TP1", "model": "llama-3.1-8b"}, {"name": "TP2", "model": "llama-3.1-8b", "tp": 2}]
    matrix = parse({"rows": rows, "concurrencies": [1, 16], "repeats": 3, "order": "together"})
    for row in matrix.rows:
        store.keep_server(row, order="together", beside=[], ready_s=70.0, start=1, log={"kv_cache_tokens": 1000})
        for cell in row.cells():
            speed = SPEEDS[row.name][cell.repeat - 1] * (1 if cell.concurrency == 1 else 10)
            store.keep_cell(
                row, cell, output_throughput=speed, median_ttft_ms=15.0, median_tpot_ms=1000 / speed, failed=0
            )
    store.keep_failure(matrix.rows[0], "it ended: no memory.")
    return tmp_path


def test_medians_and_spread(folder):
    (results,) = read_all(folder)
    table = bench_report.table(results).set_index(["row", "concurrency"])
    assert len(table) == 4 and (table["repeats"] == 3).all()
    one = table.loc[("TP2", 16)]
    assert (one["tokens_per_second"], one["lowest"], one["highest"]) == (3000, 2700, 3300)
    assert one["share"] == pytest.approx(3000 / one["bound"])


def server(**row):
    return described(parse({"rows": [{"name": "a", "model": "llama-3.1-8b"} | row]}).rows[0])


def test_alone_the_bound_is_that_of_memory():
    gpu, config = get_gpu("H200"), load("llama-3.1-8b")
    reading = decode_tokens_per_second(config, gpu, context=192)
    assert bench_report.bound(server(), gpu, 128, 128, 1) == pytest.approx(reading, rel=0.02)


def test_the_bound_by_layout():
    gpu = get_gpu("H200")

    def at(load, **row):
        return bench_report.bound(server(**row), gpu, 512, 128, load)

    assert at(1, tp=2) == pytest.approx(2 * at(1), rel=0.01)  # half of the weights each
    assert at(1, pp=2) == pytest.approx(at(1), rel=0.01)  # one stage after the other
    assert at(1, dp=2) == pytest.approx(at(1))  # the other replica has nothing to do
    assert at(2, dp=2) == pytest.approx(2 * at(1))
    assert at(16, dp=2) > at(16) > at(1)


def test_with_long_prompts_arithmetic_is_the_bound():
    gpu = get_gpu("H200")
    flops = 2 * active_parameter_count(load("llama-3.1-8b")) * 8192
    share = bench_report.bound(server(), gpu, 8192, 1, 64) * flops / gpu.bf16_flops
    assert 0.85 < share < 0.95  # the rest is attention


def test_fp8_has_another_bound():
    gpu = get_gpu("H200")
    assert bench_report.bound(server(flags=["--quantization", "fp8"]), gpu, 64, 64, 1) > 1.7 * bench_report.bound(
        server(), gpu, 64, 64, 1
    )


def test_no_bound_where_the_gpu_or_the_model_is_not_known():
    assert math.isnan(bench_report.bound(server(), None, 64, 64, 1))
    assert math.isnan(bench_report.bound(server() | {"config": {"architectures": ["New"]}}, get_gpu("H200"), 64, 64, 1))


def test_a_ratio_is_of_the_same_repeats(folder):
    (results,) = read_all(folder)
    found = bench_report.ratios(results, "TP2", to="TP1").set_index("concurrency")
    assert found.loc[1, "ratio"] == pytest.approx(1.5) and found.loc[1, "repeats"] == 3
    assert found.loc[1, "highest"] == pytest.approx(330 / 210) and found.loc[1, "lowest"] == pytest.approx(270 / 190)


def test_the_report_prints_all_of_it(folder, capsys):
    assert bench.main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    for words in ("2 x NVIDIA H200", "vllm 0.25.1", "Servers", "llama-3.1-8b, 512 tokens in, 128 out", "no memory"):
        assert words in said


def test_pictures_are_drawn_from_results_alone(folder, tmp_path):
    (results,) = read_all(folder)
    files = bench_report.draw(results, tmp_path / "p")
    assert len(files) == 2 and all(file.stat().st_size > 10_000 for file in files)
    figure = bench_plots.speeds(bench_report.table(results), "x")
    assert "TP2 3000 at 16" in figure.get_label()
    shares = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert sum("%" in text for text in shares) == 4


def test_a_machine_without_gpus_has_no_bounds(tmp_path):
    store = Store(tmp_path, MACHINE | {"gpus": [], "driver": None, "name": "cpu"})
    row = parse({"rows": [{"name": "a", "model": "tiny"}]}).rows[0]
    store.keep_server(row, order="in turn", beside=[], ready_s=20.0, start=1, log={})
    store.keep_cell(row, Cell(1, 8, 8, 2, 4), output_throughput=5.0, median_ttft_ms=1.0, median_tpot_ms=1.0)
    (results,) = read_all(tmp_path)
    assert bench_report.table(results)["bound"].isna().all()
    assert len(bench_report.draw(results, tmp_path)) == 1  # one load is no curve


def test_nothing_to_report_is_said(tmp_path, capsys):
    assert bench.main(["report", str(tmp_path)]) == 2
    assert "No results in" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted([*BENCH.glob("*.toml"), *FOUR.glob("*.toml")]), ids=lambda path: path.stem)
def test_the_matrices_of_the_repository_can_be_read(path):
    assert all(row.fingerprint for row in read(path).rows)


HOSTS = {results.machine["id"]: results for results in read_all(BENCH)}
OF_FOUR = {results.machine["id"]: results for results in read_all(FOUR)}


@pytest.fixture(scope="module")
def kept():
    return HOSTS["010b4ebf"]


@pytest.mark.parametrize("results", HOSTS.values(), ids=HOSTS)
def test_the_kept_results_are_whole(results):
    table = bench_report.table(results)
    assert (table["repeats"] == 3).all() and (table["failed"] == 0).all() and (table["prefix_hits"] == 0).all()
    assert table["share"].dropna().between(0.05, 0.9).all()  # no bound is broken
    assert results.machine["versions"]["vllm"] == "0.25.1" and "NV18" in results.machine["topology"]
    warm = ~table["row"].str.contains("script|DP2") & ~(
        (table["model"] == "minimax-m2.1") & (table["concurrency"] == 64)
    )
    assert (table["highest"] / table["lowest"])[warm].max() < 1.1


@pytest.mark.parametrize("id_, repeats, cells", [("4a8dd232", 1, 7), ("e043ea48", 3, 63)])
def test_the_kept_results_of_four_gpus_are_whole(id_, repeats, cells):
    results = OF_FOUR[id_]
    table = bench_report.table(results)
    assert len(results.cells) == cells and not results.failures
    assert (table["repeats"] == repeats).all() and not table[["failed", "preemptions", "prefix_hits"]].any(axis=None)
    assert table["share"].between(0.05, 0.8).all()


@pytest.mark.parametrize("results", [*HOSTS.values(), *OF_FOUR.values()], ids=[*HOSTS, *OF_FOUR])
def test_the_kept_results_are_of_the_matrices_beside_them(results):
    paths = FOUR.glob("*.toml") if len(results.machine["gpus"]) == 4 else BENCH.glob("h200x2-*.toml")
    rows = [row for path in paths for row in read(path).rows]
    rows = {replace(row, gpus=placed(row, results.machine)).fingerprint: row.name for row in rows}
    assert {server["fingerprint"]: server["name"] for server in results.servers}.items() <= rows.items()


def test_random_routers_have_no_bound_above_one_request():
    mixture = server(model="minimax-m2.1", tp=2)
    assert bench_report.bound(mixture, get_gpu("H200"), 512, 128, 1) > 600
    assert math.isnan(bench_report.bound(mixture, get_gpu("H200"), 512, 128, 64))
    assert bench_report.bound(mixture | {"weights": "real"}, get_gpu("H200"), 512, 128, 64) > 2000


def test_what_the_kept_results_teach(kept):
    def ratio(row, to, model="llama-3.1-8b"):
        found = bench_report.ratios(kept, row, to=to)
        return found[found["model"] == model].set_index("concurrency")["ratio"]

    assert ratio("TP2", "TP1")[1] > 1.35 and ratio("PP2", "TP1")[1] < 1  # TP helps one request, PP does not
    assert ratio("DP2", "TP1")[1] == pytest.approx(1, abs=0.05) and ratio("DP2", "TP1")[64] > 1.2
    assert ratio("TP2", "TP2, script's flags", "llama-3.1-70b")[1] > 2
    assert ratio("TP2, compiled for 1", "TP2")[1] > 1.05 and ratio("TP2, sockets", "TP2")[16] < 0.3


def test_what_the_second_host_teaches():
    def ratio(row, model="llama-3.1-70b"):
        found = bench_report.ratios(HOSTS["056c18b8"], row, to="TP2")
        return found[(found["model"] == model) & (found["input_len"] == 512)].set_index("concurrency")["ratio"]

    assert ratio("PP2").max() < 0.85 and ratio("PP2")[1] < 0.6  # two halves, one after the other
    assert ratio("TP2, FP8").between(1.5, 1.7).all()
    compiled = ratio("TP2, compiled for 1")
    assert compiled[1] > 1.09 and compiled[[16, 64, 128]].between(0.99, 1.01).all()
    assert ratio("TP2 + EP", "minimax-m2.1").between(0.9, 0.97).all()
    assert ratio("TP1", "qwen2.5-32b").between(0.58, 0.65).all()


def test_what_four_gpus_teach():
    """Goals of the workshop: 65% of the bound with one request, 2.5 times the script's flags with one and 1.5 with 64 and 128."""
    results = OF_FOUR["e043ea48"]
    table = bench_report.table(results)
    alone = table[(table["concurrency"] == 1) & (table["row"] == "TP4")].set_index("model")["share"]
    assert alone["llama-3.1-70b"] == pytest.approx(0.60, abs=0.01) and alone["llama-3.1-405b-fp8"] == pytest.approx(0.65, abs=0.01)  # fmt: skip
    script = bench_report.ratios(results, "TP4", to="TP4, script's flags").set_index("concurrency")["lowest"]
    assert script[1] > 2.5 and script[[64, 128]].min() > 1.5

    def ratio(row):
        return bench_report.ratios(results, row, to="TP4").set_index("concurrency")["ratio"]

    assert ratio("TP4, two nodes").between(0.9, 0.96).all() and ratio("TP4, compiled for 1")[1] < 1
    assert ratio("PP4").max() < 0.6 and ratio("TP2 x PP2").between(0.57, 0.82).all()


@pytest.mark.parametrize(
    "folder, host, tp, share", [(BENCH, "010b4ebf", 2, 0.85), (FOUR, "e043ea48", 4, 0.77)], ids=["two GPUs", "four"]
)
def test_where_the_time_of_a_token_goes(folder, host, tp, share):
    """70B: the bound, the products as PyTorch reads for them, the whole step; each is more than the one before."""
    links = json.loads((folder / f"links-{tp}x-NVIDIA-H200.json").read_text())
    config, table = load("llama-3.1-70b"), bench_report.table((HOSTS | OF_FOUR)[host])
    same = (table["model"] == "llama-3.1-70b") & (table["row"] == f"TP{tp}") & (table["concurrency"] == 1)
    step = table[same]["tpot_ms"].item()
    least = 1000 * decode_seconds(config, "H200", tp=tp)
    products = 1000 * matrix_seconds(links, config)
    assert 28 / tp < least < products < step and products / step == pytest.approx(share, abs=0.02)


def test_the_matrices_of_a_layer_hold_its_parameters():
    config = load("llama-3.1-70b")
    whole = sum(outputs * inputs for outputs, inputs in matrices(config, 1).values())
    halves = sum(outputs * inputs for outputs, inputs in matrices(config, 2).values())
    assert whole == 2 * halves == pytest.approx((70_553_706_496 - 2 * 128256 * 8192) / 80, rel=1e-3)


def test_ranks_talk():
    times = talking(2, (8192, 65536))
    assert set(times) == {"8192", "65536"} and all(0 < seconds < 5 for seconds in times.values())
