"""KV cache and plans, against what servers printed; properties that any model and layout must have; the command."""

import math
from dataclasses import replace

import pytest

from helpers.calibration import calibrate, measured
from helpers.kv_cache import blocks_per_request, kv_blocks
from helpers.memory import (
    kv_bytes_per_token,
    kv_cache_tokens,
    load,
    plan,
    read_log,
)
from helpers.models import ModelConfig
from helpers.partition import stage_layers

GIB = 2**30


def tiny(architecture: str, **fields) -> ModelConfig:
    """The small models whose servers were run on a CPU to check the rules."""
    shape = {
        "architectures": [architecture],
        "hidden_size": 256,
        "intermediate_size": 512,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "num_attention_heads": 8,
    }
    return ModelConfig.from_dict(shape | fields)


WINDOWED = tiny("MistralForCausalLM", num_hidden_layers=4, num_key_value_heads=4, head_dim=32, sliding_window=512)
GROUPED = tiny("Qwen3ForCausalLM", num_hidden_layers=7, num_key_value_heads=2, head_dim=64)
LATENT = tiny(
    "DeepseekV2ForCausalLM",
    num_hidden_layers=3,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)


# Bytes a token


def test_kv_bytes_of_the_facts():
    kib = {"llama-3.1-8b": 128, "llama-3.1-70b": 320, "llama-3.1-405b": 504, "qwen2.5-7b": 56, "qwen2.5-32b": 256}
    kib |= {"qwen3-14b": 160, "mistral-7b-v0.1": 128, "mixtral-8x7b": 128, "minimax-m2": 248, "deepseek-v3": 68.625}
    assert {name: kv_bytes_per_token(load(name)) / 1024 for name in kib} == kib


def test_tp_beyond_the_kv_heads_saves_nothing():
    config = load("llama-3.1-405b")
    assert kv_bytes_per_token(config, tp=16) == kv_bytes_per_token(config, tp=8) == 64512
    assert 16 * kv_bytes_per_token(config, tp=16) * 128_000 / GIB == pytest.approx(123.05, abs=0.01)
    assert kv_bytes_per_token(config) * 128_000 / GIB == pytest.approx(61.52, abs=0.01)


def test_latent_attention_is_repeated_on_every_rank():
    config = load("deepseek-v3")
    assert kv_bytes_per_token(config, tp=8) == kv_bytes_per_token(config) == 61 * (512 + 64) * 2


def test_fp8_halves_the_cache_and_auto_follows_the_model():
    config = load("llama-3.1-405b-fp8")
    assert kv_bytes_per_token(config) == 2 * kv_bytes_per_token(config, dtype="fp8")
    asks_for_fp8 = replace(config, quantization=replace(config.quantization, fp8_kv_cache=True))
    assert kv_bytes_per_token(asks_for_fp8) == kv_bytes_per_token(config, dtype="fp8")


def test_uneven_stages_as_vllm_cuts_them():
    assert stage_layers(61, 4) == [15, 15, 16, 15]
    assert stage_layers(126, 4) == [31, 32, 32, 31]
    assert stage_layers(7, 2) == [4, 3]
    assert stage_layers(80, 3) == [27, 27, 26]
    assert kv_bytes_per_token(load("deepseek-v3"), pp=4) == 16 * 576 * 2


# Tokens from available memory, as servers printed both


def test_one_gibibyte_on_a_cpu():
    config = tiny("LlamaForCausalLM", num_hidden_layers=8, num_key_value_heads=4, head_dim=32)
    assert kv_bytes_per_token(config) == 4096
    assert kv_cache_tokens(config, GIB, block_size=128) == 262_144


@pytest.mark.parametrize(
    ("config", "length", "in_flight", "dtype", "printed"),
    [
        (GROUPED, 1000, 0, "auto", 292_500),
        (GROUPED, 1024, 0, "fp8", 599_168),
        (LATENT, 1024, 0, "auto", 310_656),
        (WINDOWED, 1000, 4096, "auto", 455_111),
        (WINDOWED, 4096, 4096, "auto", 508_400),
        (WINDOWED, 4096, 256, "auto", 2_396_745),
    ],
)
def test_lines_of_vllm_0_32_on_a_cpu_exactly(config, length, in_flight, dtype, printed):
    """Run for the workshop: one GiB, blocks of 128, tokens in flight = max_num_batched_tokens."""
    cache = {"dtype": dtype, "block_size": 128, "max_model_len": length, "in_flight_tokens": in_flight}
    assert kv_cache_tokens(config, GIB, **cache) == printed


LOG = measured()["server_log"]


@pytest.mark.parametrize(
    ("name", "layout", "available", "printed"),
    [
        # Measured for the workshop: vLLM 0.25.1 on H200. (Of tp2pp2 the log gives only the first stage: see below.)
        ("llama-3.1-8b", {}, LOG["8b"]["available_kv_gib"][0] * GIB, LOG["8b"]["gpu_kv_cache_tokens"][0]),
        ("llama-3.1-70b", {"tp": 4}, LOG["tp4"]["available_kv_gib"][0] * GIB, LOG["tp4"]["gpu_kv_cache_tokens"][0]),
        # Public logs: Mistral's shape on an H100, vLLM 0.10.2, to the byte; Qwen2.5-32B, TP2 on L40S, vLLM 0.7
        # (issue 15815, 3,947 blocks); Llama-3.3-70B at TP4 and DeepSeek-R1 at TP8, vLLM 0.11.2.
        ("mistral-7b-v0.1", {}, 59_212_694_937, 451_744),
        ("qwen2.5-32b", {"tp": 2}, 7.71 * GIB, 3947 * 16),
        ("llama-3.1-70b", {"tp": 4}, 106.17 * GIB, 1_391_552),
        ("deepseek-r1", {"tp": 8, "block_size": 64}, 41.60 * GIB, 635_648),
    ],
)
def test_tokens_printed_for_the_memory_printed(name, layout, available, printed):
    assert kv_cache_tokens(load(name), available, **layout) == pytest.approx(printed, rel=0.001)


def test_the_tightest_stage_decides_though_the_log_gives_the_first():
    """tp2pp2: 94.50 GiB printed by rank 0 would be 1,238,630 tokens; 1,233,792 were printed, 94.13 GiB on the last."""
    config, log = load("llama-3.1-70b"), LOG["tp2pp2"]
    last = log["gpu_kv_cache_tokens"][0] * kv_bytes_per_token(config, tp=2, pp=2)
    stages = [log["available_kv_gib"][0] * GIB, last]
    assert kv_cache_tokens(config, stages, tp=2, pp=2) == log["gpu_kv_cache_tokens"][0]
    p = plan(config, gpu="H200", tp=2, pp=2, max_model_len=8192, max_num_seqs=128)
    assert p.kv_cache_bytes / GIB == pytest.approx(last / GIB, abs=0.2)


# Plans against servers, end to end


@pytest.mark.parametrize(
    ("name", "run", "flags"),
    [
        ("llama-3.1-8b", "8b", {}),
        ("llama-3.1-70b", "tp4", {"tp": 4, "max_num_seqs": 128}),
        ("llama-3.1-70b", "tp2pp2", {"tp": 2, "pp": 2, "max_num_seqs": 128}),
    ],
)
def test_plans_predict_the_measured_servers(name, run, flags):
    p = plan(load(name), gpu="H200", max_model_len=8192, **flags)
    printed = LOG[run]["gpu_kv_cache_tokens"][0]
    assert p.kv_cache_tokens == pytest.approx(printed, rel=0.002)
    assert abs(p.kv_cache_tokens - printed) <= p.tokens_error + 16
    assert p.max_concurrency == pytest.approx(LOG[run]["max_concurrency_8192"][0], rel=0.002)


@pytest.mark.parametrize(
    ("name", "flags", "printed", "off"),
    [
        # vLLM 0.11.2 on H200, utilisation taken as its default 0.9; neither log went into the calibration. That version
        # set nothing aside for graphs, so part of the agreement on the mixture is luck.
        ("llama-3.1-70b", {"tp": 4}, 1_391_552, 0.0117),
        ("deepseek-r1", {"tp": 8}, 635_648, -0.0024),
    ],
)
def test_older_servers_lie_outside_the_calibration_by_so_much(name, flags, printed, off):
    config = load(name)
    if name == "llama-3.1-70b":
        config = replace(config, quantization=load("llama-3.1-405b-fp8").quantization)
    p = plan(config, gpu="H200", max_model_len=8192, gpu_memory_utilization=0.9, **flags)
    assert p.kv_cache_tokens / printed - 1 == pytest.approx(off, abs=0.001)


def test_eager_mode_saves_what_compilation_and_graphs_take():
    """A dense 8B: no second embedding table while it compiles. A mixture of the older runner: no graphs set aside."""
    flags = {"gpu": "H100", "max_model_len": 8192}
    eager, compiled = (plan(load("llama-3.1-8b"), enforce_eager=eager, **flags).breakdown for eager in (True, False))
    assert eager["activations"] < compiled["activations"] and eager["cuda_graphs"] == compiled["cuda_graphs"] == 0
    eager, compiled = (plan(load("mixtral-8x7b"), tp=2, enforce_eager=e, **flags).breakdown for e in (True, False))
    assert compiled["cuda_graphs"] == calibrate().cuda_graphs and eager["cuda_graphs"] == 0
    assert eager["kv_cache"] - compiled["kv_cache"] == calibrate().cuda_graphs


def test_what_the_slides_asked():
    """405B in BF16 fits on 16 H100, not on 8; in FP8 on 8 H100 or 4 H200; 70B wants two H100 and a short context."""
    assert plan(load("llama-3.1-405b"), gpu="H100", tp=4, pp=4).fits
    assert not plan(load("llama-3.1-405b"), gpu="H100", tp=8).fits
    assert plan(load("llama-3.1-405b-fp8"), gpu="H100", tp=8).fits
    assert plan(load("llama-3.1-405b-fp8"), gpu="H200", tp=4, max_model_len=8192).fits
    assert plan(load("llama-3.1-70b"), gpu="H100", tp=2, max_model_len=8192).fits
    assert "lower max_model_len to 3" in plan(load("llama-3.1-70b"), gpu="H100", tp=2).reason
    assert "GiB more than a GPU may use" in plan(load("llama-3.1-70b"), gpu="H100").reason


def test_a_request_needs_one_block_more_than_it_fills():
    config, flags = load("llama-3.1-70b"), {"gpu": "H100", "tp": 2}
    longest = plan(config, **flags).kv_cache_tokens - 16
    assert plan(config, max_model_len=longest, **flags).fits
    assert not plan(config, max_model_len=longest + 1, **flags).fits


def test_data_parallel_experts_are_shared_out_but_each_replica_prints_its_own_cache():
    one = plan(load("qwen3-30b-a3b"), gpu="H100", tp=1, max_model_len=8192)
    four = plan(load("qwen3-30b-a3b"), gpu="H100", tp=1, dp=4, max_model_len=8192)
    assert four.gpus == 4 and four.weights_per_gpu < one.weights_per_gpu / 2
    dense = [plan(load("llama-3.1-8b"), gpu="H100", dp=dp, max_model_len=8192) for dp in (1, 4)]
    assert dense[0].kv_cache_tokens == dense[1].kv_cache_tokens


def test_a_window_lets_a_server_promise_more_tokens_than_it_has_blocks_for():
    p = plan(load("mistral-7b-v0.1"), gpu="H100", max_model_len=32768)
    held = blocks_per_request(load("mistral-7b-v0.1"), 32768, 2 * 8192)
    assert held == math.ceil((4095 + 16384) / 16) + 1
    assert p.kv_cache_tokens == int(kv_blocks(load("mistral-7b-v0.1"), p.kv_cache_bytes) / held * 32768)


# Logs


def test_logs_of_two_lines_and_of_one():
    old = (
        "\x1b[36m(Worker_TP0 pid=415)\x1b[0m INFO [x.py:1] Model loading took 16.9619 GiB memory and 33 seconds\n"
        "INFO [x.py:2] Available KV cache memory: 106.17 GiB\n"
        "INFO [x.py:3] GPU KV cache size: 1,391,552 tokens\n"
        "INFO [x.py:4] Maximum concurrency for 8,192 tokens per request: 169.87x\n"
        "INFO [x.py:5] Graph capturing finished in 8 secs, took 0.62 GiB\n"
    )
    log = read_log(old)
    assert (log.device, log.kv_cache_tokens, log.max_model_len, log.max_concurrency) == ("GPU", 1391552, 8192, 169.87)
    assert (log.available_kv_gib, log.model_loading_gib, log.cuda_graphs_gib) == ((106.17,), (16.9619,), (0.62,))
    new = "INFO CPU KV cache size: 262,144 tokens, Maximum concurrency for 1,024 tokens per request: 256.00x"
    log = read_log(new)
    assert (log.device, log.kv_cache_tokens, log.max_model_len, log.max_concurrency) == ("CPU", 262144, 1024, 256.0)


def test_a_log_without_the_lines_reads_as_none():
    assert read_log("") == read_log("INFO nothing to see")
    assert read_log("").kv_cache_tokens is None and read_log("").available_kv_gib == ()


def test_of_several_replicas_the_smallest_cache_counts():
    line = "GPU KV cache size: {} tokens, Maximum concurrency for 8,192 tokens per request: {}x\n"
    log = read_log(line.format("600,000", "73.24") + line.format("500,000", "61.04"))
    assert (log.kv_cache_tokens, log.max_concurrency) == (500_000, 61.04)
