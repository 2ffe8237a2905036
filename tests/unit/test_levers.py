"""Lesson 08's arithmetic: speculation's formulas, quantised checkpoints, diagnoses, the decision table."""

import json
import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from helpers import (
    bench_report,
    diagnosis,
    host_memory,
    lever_data,
    lever_lesson,
    levers,
    quality,
    quantize,
    speculation,
)
from helpers.bench_checks import placed
from helpers.bench_matrix import read
from helpers.models import load
from helpers.tiny import ADAPTER_DIR, DRAFT_DIR, MODEL_DIR, adapter, corpus

# --- speculation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance, drafted", [(0.0, 1), (0.3, 4), (0.8, 4), (0.95, 8), (1.0, 3)])
def test_expected_tokens_are_those_of_drawing_lots(acceptance, drafted):
    draw, steps = random.Random(1), 20_000

    def tokens() -> int:
        accepted = 0
        while accepted < drafted and draw.random() < acceptance:
            accepted += 1
        return accepted + 1

    mean = sum(tokens() for _ in range(steps)) / steps
    assert speculation.expected_tokens(acceptance, drafted) == pytest.approx(mean, rel=0.02)


def test_break_even_is_where_the_speedup_is_one():
    share = speculation.break_even(4, draft=0.2, verify=1.1)
    assert speculation.speedup(share, 4, draft=0.2, verify=1.1) == pytest.approx(1, abs=1e-4)
    assert speculation.break_even(4, verify=1.0) == 0 or speculation.break_even(4, verify=1.0) < 1e-5
    assert math.isnan(speculation.break_even(4, draft=1.0, verify=1.1)), "5 tokens for 5.1 steps never pay"


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.9])
def test_the_acceptance_is_found_back_from_the_tokens(acceptance):
    tokens = speculation.expected_tokens(acceptance, 4)
    assert speculation.acceptance_for(tokens, 4) == pytest.approx(acceptance, abs=1e-5)


def test_counts_tell_steps_with_guesses_from_those_without():
    """Two requests of 26 tokens: a step for each prompt, and 20 more of which 10 had guesses."""
    now = speculation.Counts(drafts=11, drafted=44, accepted=33, written=53, steps=23, requests=3)
    counts = now - speculation.Counts(1, 4, 3, 1, 1, 1)
    assert (counts.acceptance, counts.tokens_per_step) == (0.75, 50 / 20)
    assert speculation.predicted_speedup(counts, cost=1.0) == 50 / 20
    assert speculation.predicted_speedup(counts, cost=2.0) == 50 / 30


def test_shares_that_are_none_are_refused():
    with pytest.raises(speculation.SpeculationError, match=r"acceptance is 1\.2"):
        speculation.expected_tokens(1.2, 4)
    with pytest.raises(speculation.SpeculationError, match="drafted is 0"):
        speculation.speedup(0.5, 0)


# --- quantised checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    return {way: quantize.quantize(MODEL_DIR, folder / way, way) for way in quantize.WAYS}


@pytest.mark.parametrize("way", quantize.WAYS)
def test_a_checkpoint_takes_the_bytes_that_its_config_foretells(quantised, way):
    """helpers.quantization reads config.json; here a matrix of every kind must have that size on the disk."""
    scheme, tensors = load(quantised[way]).quantization, load_file(quantised[way] / "model.safetensors")
    rows, columns = quantize.layer_weights("model.layers.0.mlp.down_proj").shape
    parts = {name: t for name, t in tensors.items() if name.startswith("model.layers.0.mlp.down_proj.")}
    stored = sum(t.nbytes for name, t in parts.items() if not name.endswith("weight_shape"))
    scales = next(t for name, t in parts.items() if name.endswith("weight_scale"))
    assert stored - scales.nbytes == rows * columns * scheme.bits // 8
    assert scales.numel() == rows * (columns // 32 if way == "int4" else 1)


def test_rounding_errs_by_half_a_step_at_most(quantised):
    tensors = load_file(quantised["int8"] / "model.safetensors")
    name = "model.layers.3.self_attn.q_proj"
    scale = tensors[f"{name}.weight_scale"].float()
    restored = tensors[f"{name}.weight"].float() * scale
    original = quantize.layer_weights(name).float()
    assert ((restored - original).abs() <= 0.5001 * scale).all()
    assert torch.equal(load_file(quantised["int8"] / "model.safetensors")["model.norm.weight"], load_file(MODEL_DIR / "model.safetensors")["model.norm.weight"])  # fmt: skip


@pytest.mark.parametrize("way, values", [("int4", 16), ("int8", 256)])
def test_the_picture_s_levels_are_as_many_as_the_bits_have(way, values):
    levels, new = quantize.rounded(quantize.layer_weights()[0, :32], way)
    assert len(levels) == values
    assert all(min(abs(level - one) for level in levels) < 1e-6 for one in new)


def test_what_cannot_be_quantised_is_told(tmp_path):
    with pytest.raises(quantize.QuantizeError, match="choose one of fp8, int8, int4"):
        quantize.quantize(MODEL_DIR, tmp_path, "int3")
    with pytest.raises(quantize.QuantizeError, match="llm-compressor"):
        quantize.quantize(tmp_path, tmp_path / "new", "int8")


# --- what ships beside the model ------------------------------------------------------------------------------------


def test_the_draft_model_is_a_small_sibling():
    small, large = (load(folder) for folder in (DRAFT_DIR, MODEL_DIR))
    assert small.vocab_size == large.vocab_size
    bytes_of = [(folder / "model.safetensors").stat().st_size for folder in (DRAFT_DIR, MODEL_DIR)]
    assert bytes_of[0] < bytes_of[1] / 8


def test_the_adapter_is_of_the_small_llama():
    shapes = {name: tuple(t.shape) for name, t in load_file(ADAPTER_DIR / "adapter_model.safetensors").items()}
    assert len(shapes) == 2 * 8 * len(adapter.TARGETS)
    assert {min(shape) for shape in shapes.values()} == {adapter.RANK}


# --- diagnosis and decisions -----------------------------------------------------------------------------------------


def test_a_step_waits_for_weights_then_cache_or_arithmetic():
    alone = diagnosis.diagnose("llama-3.1-8b", "H200", prompt=500, output=300)
    crowd = diagnosis.diagnose("llama-3.1-8b", "H200", prompt=10, output=2, batch=1000)
    long = diagnosis.diagnose("llama-3.1-8b", "H200", prompt=100_000, output=1000, batch=8)
    assert (alone.bound, crowd.bound, long.bound) == ("reading weights", "arithmetic", "reading the cache")
    assert (alone.phase, crowd.phase) == ("decode", "prefill")
    assert diagnosis.balance_batch("H200") == [pytest.approx(989 / 4.8)]


def test_a_verdict_needs_all_measurements_or_none():
    rows = pd.DataFrame({
        "lever": ["a", "a", "b", "b", "c"], "one": [1.2, 1.5, 1.2, 1.0, 0.9], "many": [2.0, math.nan, 1, 1, math.nan],
    })  # fmt: skip
    table = lever_data.decisions(rows)
    assert table["one client"].to_dict() == {"a": "yes", "b": "depends", "c": "no"}
    assert table["a crowd"].to_dict() == {"a": "yes", "b": "no", "c": "?"}
    assert table.loc["a", "one request"] == "1.20 to 1.50" and table.loc["c", "many requests"] == "not measured"


def test_the_effects_are_those_of_the_measurements():
    found = lever_data.effects().set_index(["lever", "model"])
    assert found.loc[("FP8 weights, made while loading", "llama-3.1-70b"), "one"] == pytest.approx(
        75.23 / 46.26, abs=0.01
    )
    assert set(found["gpus"]) == {1, 2, 4}


@pytest.mark.parametrize("name", ["reads", "steps", "context", "bus"])
def test_the_lever_results_are_of_the_matrices_beside_them(name):
    results = lever_data.kept(name)
    rows = {row.name: row for row in read(lever_data.LEVERS / f"{name}.toml").rows}
    rows = {replace(row, gpus=placed(row, results.machine)).fingerprint: row.name for row in rows.values()}
    assert {server["fingerprint"]: server["name"] for server in results.servers} == rows
    table = bench_report.table(results)
    assert (table["failed"] == 0).all() and (table["prefix_hits"] == 0).all() and not results.failures
    single = table["row"].str.contains("host memory") & (name == "bus")  # its time was up
    assert (table["repeats"] == single.map({True: 1, False: 3})).all()
    assert ((table["highest"] / table["lowest"])[table["concurrency"] == 1].max() < 1.2) and (
        table["share"].dropna() < 0.9
    ).all()


def test_what_halves_the_cache_of_a_token_doubles_the_tokens():
    assert lever_data.cache_gain("reads", "TP1, FP8 cache", to="TP1") == pytest.approx(2, abs=0.02)
    assert lever_data.cache_gain("context", "TP2, DCP2", to="TP2") == pytest.approx(2, abs=0.02)


def test_host_memory_was_found_where_the_seconds_say():
    found = lever_data.host_memory()["offload"]
    whole = host_memory.PROMPTS * host_memory.PROMPT
    assert found["tokens"]["from host memory"] == whole and found["tokens"]["on the GPU"] > 0.99 * whole
    computed, host, gpu = lever_data.first_tokens().values()
    assert computed > 3 * host > 3 * gpu


def test_host_memory_is_measured_beside_a_gpu_only(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0 GPUs, and number 0 was asked for"):
        host_memory.main([str(tmp_path / "out.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer, fits",
    [
        (json.dumps({"city": "Boston", "note": 25 * "x"}), True),
        (json.dumps({"city": "Rome", "note": 25 * "x"}), False),
        (json.dumps({"city": "Boston", "note": "short"}), False),
        ('{"city": "Bos', False),
        ("3", False),
    ],
)
def test_an_answer_that_is_cut_off_or_breaks_the_schema_does_not_fit(answer, fits):
    assert lever_lesson._fits(answer) is fits


def test_odds_that_moved_are_measured_over_the_known_words():
    truth = quality.Quality(corpus.ODDS, nats=10, tokens=10)
    moved = {start: dict(odds) for start, odds in corpus.ODDS.items()}
    first, second, *_ = moved["The weather in Boston is"]
    moved["The weather in Boston is"][first] -= 0.1
    moved["The weather in Boston is"][second] += 0.1
    other = quality.Quality(moved, nats=20, tokens=10)
    assert truth.distance == pytest.approx(0) and truth.perplexity == pytest.approx(math.e)
    assert other.most_moved_from(truth) == pytest.approx(0.1)
    assert other.moved_from(truth) == pytest.approx(0.1 / len(corpus.ODDS))


def test_every_lever_says_what_it_is_for():
    assert all(one.gain and one.cost for one in levers.LEVERS)
    with pytest.raises(KeyError, match="prefix caching"):
        levers.find("warp drive")
