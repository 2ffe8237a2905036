"""Turns of the rows, results that survive a kill and are not mixed, and the commands that start servers."""

import json
import os

import pytest

from helpers import bench, bench_server
from helpers.bench import bench_flags, starts
from helpers.bench_log import figures
from helpers.bench_matrix import Cell, parse
from helpers.bench_server import RowServer, command, environment
from helpers.bench_store import Store, StoreError, read, read_all
from helpers.connections import Connection

MACHINE = {"id": "0a", "name": "cpu-2-cores", "gpus": [], "cores": 2, "processor": "x", "versions": {"vllm": "0.0"}}


def matrix(order="in turn", repeats=2, **row):
    rows = [{"name": name, "model": "tiny", "flags": [f"--{name}"], "concurrencies": [1, 4], **row} for name in "ab"]
    return parse({"rows": rows, "order": order, "repeats": repeats})


def turns(order, done=frozenset()):
    return [
        ["".join(row.name for row in start.rows)]
        + [f"{row.name}{cell.concurrency}r{cell.repeat}" for row, cell in start.cells]
        for start in starts(matrix(order), done)
    ]


def test_in_turn():
    assert turns("in turn") == [["a", "a1r1", "a4r1", "a1r2", "a4r2"], ["b", "b1r1", "b4r1", "b1r2", "b4r2"]]


def test_alternate():
    assert turns("alternate") == [
        ["a", "a1r1", "a4r1"],
        ["b", "b1r1", "b4r1"],
        ["a", "a1r2", "a4r2"],
        ["b", "b1r2", "b4r2"],
    ]


def test_together():
    assert turns("together") == [["ab", "a1r1", "b1r1", "a4r1", "b4r1", "a1r2", "b1r2", "a4r2", "b4r2"]]


def test_what_is_done_is_not_done_again():
    a, b = matrix().rows
    done = {(a.fingerprint, cell) for cell in a.cells()} | {(b.fingerprint, b.cells()[0])}
    assert turns("in turn", done) == [["b", "b4r1", "b1r2", "b4r2"]]
    assert turns("together", done) == [["b", "b4r1", "b1r2", "b4r2"]]
    assert turns("in turn", done | {(b.fingerprint, cell) for cell in b.cells()}) == []


def kept_cell(store, row, cell, speed=10.0):
    store.keep_cell(
        row, cell, output_throughput=speed, median_ttft_ms=1.0, median_tpot_ms=1.0, prefix_hits=0, preemptions=0
    )


def test_results_are_read_as_they_were_kept(tmp_path):
    store, row = Store(tmp_path, MACHINE), matrix().rows[0]
    assert store.done() == set() and store.starts_of(row) == 0
    store.keep_server(row, order="in turn", beside=[], ready_s=1.5, start=1, log={})
    kept_cell(store, row, row.cells()[1])
    store.keep_failure(row, "it ended")
    (results,) = read_all(tmp_path)
    assert results.machine["id"] == "0a" and results.server_of(row.fingerprint)["ready_s"] == 1.5
    assert store.done() == {(row.fingerprint, row.cells()[1])} and store.starts_of(row) == 1
    assert results.failures[0]["said"] == "it ended" and results.cells[0]["row"] == "a"


def test_a_line_cut_off_by_a_kill_costs_that_line_alone(tmp_path):
    store, row = Store(tmp_path, MACHINE), matrix().rows[0]
    kept_cell(store, row, row.cells()[0])
    kept_cell(store, row, row.cells()[1])
    store.path.write_text(store.path.read_text()[:-30])
    assert store.done() == {(row.fingerprint, row.cells()[0])}
    kept_cell(store, row, row.cells()[2])
    assert store.done() == {(row.fingerprint, row.cells()[place]) for place in (0, 2)}


def test_another_machine_writes_to_another_file(tmp_path):
    row = matrix().rows[0]
    here, there = Store(tmp_path, MACHINE), Store(tmp_path, MACHINE | {"id": "0b"})
    kept_cell(here, row, row.cells()[0])
    assert there.done() == set()
    kept_cell(there, row, row.cells()[1])
    assert [results.machine["id"] for results in read_all(tmp_path)] == ["0a", "0b"]
    assert all(len(results.cells) == 1 for results in read_all(tmp_path))
    assert here.others() == [there.path.name] and there.others() == [here.path.name]


def test_what_is_no_result_is_said(tmp_path):
    with pytest.raises(StoreError, match="No results in"):
        read_all(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({"kind": "cell"}) + "\n")
    with pytest.raises(StoreError, match="first line does not name a machine"):
        read(tmp_path / "x.jsonl")


def test_nothing_is_started_for_a_matrix_that_cannot_run(tmp_path, capsys):
    (tmp_path / "m.toml").write_text(
        '[[rows]]\nname = "a"\nmodel = "tiny"\ntp = 3\n[[rows]]\nname = "b"\nmodel = "tiny"\npp = 99'
    )
    assert bench.main(["run", str(tmp_path / "m.toml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Row a:" in said and "Row b:" in said and not (tmp_path / "out").exists()


def test_the_command_of_two_nodes():
    row = parse({"rows": [{"name": "a", "model": "llama-3.1-70b", "tp": 2, "nodes": 2, "flags": ["--x"]}]}).rows[0]
    words = command(row, "/m", "m", 8000, rank=1, master_port=9)
    nodes = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", "9", "--headless"]
    assert words[words.index("--nnodes") : -3] == nodes
    assert words[-3:] == ["--load-format", "dummy", "--x"] and "--tensor-parallel-size" in words
    assert "--headless" not in command(row, "/m", "m", 8000, rank=0, master_port=9)
    assert "--nnodes" not in command(matrix().rows[0], "/m", "m", 8000)
    assert "--load-format" not in command(matrix().rows[0], "/m", "m", 8000)  # the small Llama has weights


def test_each_node_gets_its_gpus(monkeypatch, tmp_path):
    row = parse({"rows": [{"name": "a", "model": "tiny", "tp": 2, "pp": 2, "nodes": 2, "gpus": [0, 1, 2, 3]}]}).rows[0]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [environment(row, rank, tmp_path)["CUDA_VISIBLE_DEVICES"] for rank in (0, 1)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert environment(row, 1, tmp_path)["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_each_rank_on_a_cpu_gets_a_core(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 6})
    row = parse({"rows": [{"name": "a", "model": "tiny", "tp": 2, "env": {"VLLM_CPU_KVCACHE_SPACE": "2"}}]}).rows[0]
    given = environment(row, 0, tmp_path)
    assert given["VLLM_CPU_OMP_THREADS_BIND"] == "4|6" and given["VLLM_CPU_KVCACHE_SPACE"] == "2"
    alone = environment(matrix().rows[0], 0, tmp_path)
    assert alone["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and alone["OMP_NUM_THREADS"] == "1"


def test_rows_have_caches_of_their_own(tmp_path):
    a, b = matrix().rows
    assert environment(a, 0, tmp_path)["VLLM_CACHE_ROOT"] != environment(b, 0, tmp_path)["VLLM_CACHE_ROOT"]


def test_every_cell_has_its_own_prompts_the_same_for_each_row(tmp_path):
    a, b = (
        RowServer(row, tmp_path, tmp_path, Connection("http://127.0.0.1:1/v1", "m", "key", "log"))
        for row in matrix().rows
    )
    cells = a.row.cells()

    def seed(server, cell):
        flags = bench_flags(server, cell)
        return flags[flags.index("--seed") + 1]

    assert len({seed(a, cell) for cell in cells}) == len(cells)
    assert [seed(a, cell) for cell in cells] == [seed(b, cell) for cell in cells]
    assert "key" not in bench_flags(a, Cell(1, 8, 8, 1, 1))  # it goes by the environment


def test_ports_of_servers_that_start_together_differ():
    ports = [bench_server._free_port() for _ in range(200)]
    assert len(set(ports)) == 200


def test_what_a_log_says():
    log = (
        "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN'].\n"
        "(Worker_TP0) Model loading took 65.72 GiB and 2.5 seconds\n(Worker_TP1) Model loading took 65.72 GiB and 3.5 seconds\n"
        "torch.compile took 23.84 s in total\nAvailable KV cache memory: 61.2 GiB\nGPU KV cache size: 401,424 tokens\n"
        "Maximum concurrency for 8,192 tokens per request: 49.00x\nGraph capturing finished in 8 secs, took 0.62 GiB\n"
        "init engine (profile, create kv cache, warmup model) took 46.90 s (compilation: 23.36 s)\n"
    )
    found = figures(log)
    assert found["kv_cache_tokens"] == 401424 and found["loading_s"] == 3.5 and found["compile_s"] == 23.84
    assert found["graphs_s"] == 8 and found["engine_s"] == 46.9 and found["attention"] == "FLASH_ATTN"
    assert figures("nothing of note") == {}
