"""The one page of results: its answers are those of the table, it needs no other file, and what it cannot be made of is said."""

import re
import shutil
from pathlib import Path

import pytest

from helpers import bench
from helpers.bench_page import Limits, PageError, choices, write
from helpers.bench_report import table
from helpers.bench_store import StoreError, read

H200 = Path(bench.__file__).parent / "data" / "bench" / "2x-NVIDIA-H200-010b4ebf.jsonl"


@pytest.fixture(scope="module")
def measured():
    found = table(read(H200))
    return found[found["model"] == "llama-3.1-8b"]


def test_the_answers_are_rows_of_the_table(measured):
    one, most, good = choices(measured, Limits(ttft_ms=500, tpot_ms=5)).values()
    fastest = measured[measured["concurrency"] == 1]["tokens_per_second"].max()
    assert one.startswith("TP2, compiled for 1: ") and f"{fastest:,.0f} tokens/s with 1 at once" in one
    assert most.startswith("TP2: ") and f"{measured['tokens_per_second'].max():,.0f} tokens/s with 64 at once" in most
    kept = measured[(measured["ttft_ms"] <= 500) & (measured["tpot_ms"] <= 5)]
    assert f"{kept['tokens_per_second'].max():,.0f} tokens/s with 16 at once" in good


def test_limits_that_no_server_keeps(measured):
    *_, good = choices(measured, Limits(ttft_ms=1, tpot_ms=1)).values()
    assert good.startswith("none of these servers")


def test_the_page_needs_no_other_file_and_says_how_it_was_made(tmp_path):
    said = write(H200, tmp_path / "page.html", Limits(ttft_ms=500, tpot_ms=5))
    page = (tmp_path / "page.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "<script" not in page
    assert page.count("<img alt=") == page.count("data:image/png") == 4  # two pictures for each of two models
    assert "2 x NVIDIA H200" in page and "vllm 0.25.1" in page and "2026-11-21" in page and "weights: dummy" in page
    assert "script&#x27;s flags" in page  # names are text, not HTML
    assert [line for line in said if not line.startswith(" ")] == [
        "llama-3.1-8b, 512 tokens in, 128 out", "llama-3.1-70b, 512 tokens in, 128 out",
    ]  # fmt: skip


def test_results_of_two_machines_are_not_compared(tmp_path):
    for machine in ("a", "b"):
        shutil.copy(H200, tmp_path / f"{machine}.jsonl")
    with pytest.raises(
        PageError, match="results of 2 machines, which do not compare. Name one of: .*a.jsonl, .*b.jsonl"
    ):
        write(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_results_without_a_measurement(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text(H200.read_text().splitlines(keepends=True)[0])
    with pytest.raises(PageError, match="holds no measurement"):
        write(tmp_path, tmp_path / "page.html")
    with pytest.raises(StoreError):
        write(tmp_path / "nowhere", tmp_path / "page.html")
    assert bench.main(["page", str(tmp_path / "nowhere"), str(tmp_path / "page.html")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_command_prints_the_answers(tmp_path, capsys):
    assert bench.main(["page", str(H200), str(tmp_path / "page.html"), "--ttft", "500", "--tpot", "5"]) == 0
    out = capsys.readouterr().out
    assert "first token within 500 ms and 5 ms for each after it: TP2: " in out and "page.html is written." in out
