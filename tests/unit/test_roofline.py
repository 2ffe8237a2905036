"""Bounds on speed: never below what was measured, and moving the right way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.calibration import measured
from helpers.hardware import GPU, GPUS
from helpers.memory import LayoutError, load, weight_bytes
from helpers.roofline import (
    attention_flops,
    decode_seconds,
    decode_tokens_per_second,
    pp_bytes_per_step,
    tp_bytes_per_step,
    ttft_seconds,
)

# The runs of the measured file: model, layout, and replicas where requests are spread over several.
RUNS = {
    "8b_tp1": ("llama-3.1-8b", {}, 1),
    "tp4": ("llama-3.1-70b", {"tp": 4}, 1),
    "ours70": ("llama-3.1-70b", {"tp": 4}, 1),
    "peer70": ("llama-3.1-70b", {"tp": 4}, 1),
    "mn_tp4": ("llama-3.1-70b", {"tp": 4}, 1),
    "tp4_fp8kv_ngram": ("llama-3.1-70b", {"tp": 4}, 1),
    "tp2pp2": ("llama-3.1-70b", {"tp": 2, "pp": 2}, 1),
    "mn_tp2pp2": ("llama-3.1-70b", {"tp": 2, "pp": 2}, 1),
    "pp4": ("llama-3.1-70b", {"pp": 4}, 1),
    "tp2dp2": ("llama-3.1-70b", {"tp": 2}, 2),
    "405b-fp8_tp4": ("llama-3.1-405b-fp8", {"tp": 4}, 1),
    "mm_tp4": ("minimax-m2.1", {"tp": 4}, 1),
}


@pytest.mark.parametrize("row", measured()["throughput"], ids=lambda row: f"{row['run']}-{row['max_concurrency']}")
def test_no_measured_server_beats_its_bound(row):
    name, layout, replicas = RUNS[row["run"]]
    batch = -(-row["max_concurrency"] // replicas)
    prompt = row["total_input_tokens"] // row["num_prompts"]
    dtype = "fp8" if "fp8kv" in row["run"] else "auto"
    bound = decode_tokens_per_second(load(name), "H200", **layout, batch=batch, context=prompt, dtype=dtype)
    assert row["output_throughput"] < replicas * bound
    first = ttft_seconds(load(name), "H200", **layout, prompt_tokens=prompt)
    assert row["median_ttft_ms"] / 1000 > first


def test_the_bound_of_the_facts():
    assert decode_tokens_per_second(load("llama-3.1-8b"), "H200") == pytest.approx(299, abs=0.5)
    assert decode_seconds(load("llama-3.1-8b"), "H200") == weight_bytes(load("llama-3.1-8b")) / 4.8e12


def test_one_request_gains_from_tp_and_not_from_pp():
    one, tp4, pp4 = (
        decode_tokens_per_second(load("llama-3.1-70b"), "H200", **layout) for layout in ({}, {"tp": 4}, {"pp": 4})
    )
    assert tp4 == pytest.approx(4 * one)
    assert pp4 == pytest.approx(one)


def test_a_large_batch_is_bound_by_arithmetic():
    config, gpu = load("llama-3.1-8b"), "H100"
    assert decode_tokens_per_second(config, gpu, batch=10_000) == pytest.approx(989e12 / (2 * 8_030_261_248))
    fp8 = decode_tokens_per_second(config.quantized("fp8"), gpu, batch=10_000)
    assert fp8 == pytest.approx(1979e12 / (2 * 8_030_261_248))


def test_a_mixture_reads_what_its_router_picks():
    config = load("mixtral-8x7b")
    seconds = [decode_seconds(config, "H200", batch=batch) for batch in (1, 4, 1000)]
    assert seconds[0] == pytest.approx(2 * 12.88e9 / 4.8e12, rel=0.01)
    assert seconds[0] < seconds[1] < seconds[2]


def test_context_costs_reading_the_cache():
    config = load("llama-3.1-70b")
    short, long = (decode_seconds(config, "H200", tp=4, context=context) for context in (0, 100_000))
    assert long - short == pytest.approx(100_000 * 80 * 2 * 2 * 128 * 2 / 4.8e12)
    window = load("mistral-7b-v0.1")
    assert decode_seconds(window, "H200", context=4096) == decode_seconds(window, "H200", context=30_000)


def test_time_to_first_token_grows_faster_than_the_prompt():
    config = load("llama-3.1-8b")
    assert ttft_seconds(config, "H200", prompt_tokens=1) == pytest.approx(2 * 8_030_261_248 / 4.8e12)
    short, long = (ttft_seconds(config, "H200", prompt_tokens=n) for n in (10_000, 100_000))
    assert long > 10 * short
    assert attention_flops(config, 1000) == 2 * 1000**2 // 2 * 32 * 256 * 32


def test_bytes_on_the_wire():
    config = load("llama-3.1-70b")
    assert tp_bytes_per_step(config, tp=4, tokens=1) == 80 * 2 * (2 * 3 / 4) * 8192 * 2
    assert tp_bytes_per_step(config, tp=1, tokens=512) == 0
    assert pp_bytes_per_step(config, pp=4, tokens=10) == 3 * 10 * 8192 * 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: decode_tokens_per_second(c, "H100", batch=0), "batch is 0"),
        (lambda c: decode_tokens_per_second(c, "H100", context=-1), "context is -1"),
        (lambda c: decode_tokens_per_second(c, "H100", tp=7), "Tensor parallel size 7"),
        (lambda c: ttft_seconds(c, "H100", prompt_tokens=0), "prompt_tokens is 0"),
        (lambda c: pp_bytes_per_step(c, pp=500, tokens=1), "exceeds the model's 32 layers"),
        (lambda c: tp_bytes_per_step(c, tp=0, tokens=1), "tp is 0"),
    ],
)
def test_bad_input_is_told_in_one_sentence(call, sentence):
    with pytest.raises(LayoutError, match=sentence):
        call(load("llama-3.1-8b"))


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "mistral-7b-v0.1"]),
    st.sampled_from(sorted(GPUS)),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
    st.integers(1, 512),
    st.integers(0, 100_000),
)
def test_a_step_takes_longer_with_more_requests_and_shorter_with_more_tp(name, gpu, tp, pp, batch, context):
    config, flags = load(name), {"pp": pp, "context": context}
    step = decode_seconds(config, gpu, tp=tp, batch=batch, **flags)
    assert decode_seconds(config, gpu, tp=tp, batch=batch + 1, **flags) >= step
    assert decode_seconds(config, gpu, tp=2 * tp, batch=batch, **flags) <= step
    assert isinstance(GPUS[gpu], GPU)
