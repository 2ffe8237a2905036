"""helpers.bench against real servers: a run that is stopped and goes on, one that is never ready, one that dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from helpers import bench
from helpers.bench_client import Client, ClientError
from helpers.bench_matrix import parse
from helpers.bench_store import read_all

ROOT = Path(__file__).parents[2]
ROW = 'name = "TP1"\nmodel = "tiny"\nflags = ["--enforce-eager", "--max-model-len", "512", "--no-enable-prefix-caching"]\n'


MARK = f"bench-test-{os.getpid()}"


def marked() -> list[int]:
    """Processes that were started with our mark in their environment, and all that these started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("BENCH_TEST") == MARK:
                found.append(process.pid)
    return found


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path):
    (tmp_path / "m.toml").write_text(f"concurrencies = [1, 4]\nlengths = [[16, 8]]\nrepeats = 3\n[[rows]]\n{ROW}")
    out, words = tmp_path / "out", ["run", str(tmp_path / "m.toml"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "helpers.bench", *words]
    environment = os.environ | {"BENCH_TEST": MARK}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in run.stdout:
        if "repeat 1" in line:
            break
    run.send_signal(signal.SIGTERM)
    rest = run.communicate(timeout=60)[0]
    assert run.returncode == 128 + signal.SIGTERM and "repeat 3" not in rest
    deadline = time.monotonic() + 10
    while marked() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked() == []

    done = len(read_all(out)[0].cells)
    assert 1 <= done < 6
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=600)
    assert again.returncode == 0 and f"{6 - done} measurements left" in again.stdout
    (results,) = read_all(out)
    assert len(results.cells) == 6 and len({(c["repeat"], c["concurrency"]) for c in results.cells}) == 6
    assert [server["start"] for server in results.servers] == [1, 2]
    assert all(cell["completed"] == cell["prompts"] and cell["failed"] == 0 for cell in results.cells)
    assert all(cell["total_output_tokens"] == 8 * cell["prompts"] for cell in results.cells)
    assert {cell["prefix_hits"] for cell in results.cells} == {0}
    assert results.servers[0]["log"]["device"] == "CPU" and results.servers[0]["log"]["kv_cache_tokens"] > 10_000
    third = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    assert "0 measurements left" in third.stdout and len(read_all(out)[0].servers) == 2


def test_a_server_that_is_never_ready_is_bounded_and_diagnosed(tmp_path):
    rows = [{"name": "slow", "model": "tiny"}]
    (said,) = bench.run(parse({"rows": rows, "ready_timeout": 2}), tmp_path, lambda _: None)
    assert "not ready after 2 s: the server is still starting" in said
    assert read_all(tmp_path)[0].failures[0]["said"] == said


def test_a_server_that_dies_is_diagnosed_and_the_next_is_measured(tmp_path):
    rows = [
        {"name": "dies", "model": "tiny", "flags": ["--max-model-len", "99999"]},
        {"name": "lives", "model": "tiny", "flags": ["--enforce-eager", "--max-model-len", "256"]},
    ]
    matrix = parse(
        {"rows": rows, "concurrencies": [2], "lengths": [[16, 8]], "order": "together", "ready_timeout": 400}
    )
    (said,) = bench.run(matrix, tmp_path, lambda _: None)
    assert "row dies ended" in said and "2048 tokens" in said
    (results,) = read_all(tmp_path)
    assert [cell["row"] for cell in results.cells] == ["lives"]


def test_a_benchmark_that_fails_is_said_and_the_next_can_run(tmp_path):
    client = Client(tmp_path / "client.log")
    try:
        for flags, said in ((["--no-such-flag"], "SystemExit: 2"), (["--dataset-name", "random"], "Its log")):
            with pytest.raises(ClientError, match=said):
                client.measure([*flags, "--model", str(tmp_path)], "key", timeout=120)
    finally:
        client.close()
    with pytest.raises(ClientError, match="has ended|process ended"):
        client.measure([], "key", timeout=5)
