"""Layouts vLLM refuses or accepts, bad input, and the command."""

import json
from dataclasses import replace

import pytest

from helpers import memory_command
from helpers.hardware import GPUS, HardwareError, get_gpu
from helpers.layout import check_layout
from helpers.memory import (
    ConfigError,
    LayoutError,
    kv_bytes_per_token,
    kv_cache_tokens,
    load,
    plan,
    search,
)
from helpers.models import CATALOGUE
from helpers.plots import memory_bars
from helpers.weights import stage_weight_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "layout", "sentence"),
    [
        (
            "llama-3.1-8b",
            {"tp": 3},
            "does not divide the 32 attention heads of llama-3.1-8b; sizes that do: 1, 2, 4, 8",
        ),
        ("llama-3.1-8b", {"tp": 64}, "does not divide the 32 attention heads"),
        ("qwen2.5-7b", {"tp": 7}, "the 4 KV heads of qwen2.5-7b do not divide one another"),
        ("llama-3.1-8b", {"pp": 33}, "exceeds the model's 32 layers"),
        ("mixtral-8x7b", {"tp": 16}, "exceeds the 8 experts of mixtral-8x7b"),
        ("minimax-m2.1", {"tp": 8}, "192 outputs of .*gate_proj .*whole blocks of 128.*expert parallelism"),
        ("minimax-m2.1", {"tp": 4, "dp": 2}, "192 outputs"),
        ("deepseek-v3", {"tp": 32}, "576 outputs of .*gate_proj"),
        ("llama-3.1-8b", {"tp": 0}, "tp is 0; it must be a whole number, 1 or more"),
        ("llama-3.1-8b", {"dp": -1}, "dp is -1"),
    ],
)
def test_layouts_vllm_refuses(name, layout, sentence):
    with pytest.raises(LayoutError, match=sentence):
        check_layout(load(name), **layout)


def test_int4_groups_must_stay_whole():
    """Qwen2.5-72B's MLP of 29,568 leaves 3,696 inputs on each of 8 ranks: not whole groups of 128."""
    config = replace(load("qwen2.5-32b"), num_attention_heads=64, hidden_size=8192, intermediate_size=29568)
    with pytest.raises(LayoutError, match=r"3696 inputs of .*down_proj"):
        check_layout(config.quantized("int4"), tp=8)
    check_layout(config, tp=8)


def test_expert_parallelism_keeps_experts_whole():
    config = load("minimax-m2.1")
    check_layout(config, tp=8, expert_parallel=True)
    cut, whole = (stage_weight_bytes(config, tp=4, expert_parallel=ep)[0] for ep in (False, True))
    assert cut == whole


def test_search_lists_legal_layouts_best_first():
    plans = search(load("llama-3.1-405b-fp8"), "H100", 2, 4, max_model_len=8192)
    assert all(p.gpus == 8 for p in plans)
    assert plans[0].fits and (plans[0].tp, plans[0].pp) == (8, 1)
    assert [p.fits for p in plans] == sorted((p.fits for p in plans), reverse=True)
    assert {(p.tp, p.pp, p.dp) for p in search(load("qwen2.5-7b"), "H100", 1, 6)} >= {(1, 6, 1), (2, 3, 1), (1, 1, 6)}
    assert not any(p.tp == 8 for p in search(load("minimax-m2.1"), "H200", 2, 4))
    with pytest.raises(LayoutError, match=r"No layout of minimax-m2\.1 uses all 71 GPUs\. .* divide"):
        search(load("minimax-m2.1"), "H200", 1, 71)


# Bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: kv_bytes_per_token(c, tp=5), "Tensor parallel size 5 does not divide the 32 attention heads"),
        (lambda c: kv_bytes_per_token(c, pp=99), "Pipeline parallel size 99 exceeds"),
        (lambda c: kv_bytes_per_token(c, dtype="fp3"), "Unknown KV cache type 'fp3': choose auto"),
        (lambda c: kv_cache_tokens(c, -1), "available_bytes is -1"),
        (lambda c: kv_cache_tokens(c, [GIB, GIB]), "one such figure a stage"),
        (lambda c: kv_cache_tokens(c, GIB, block_size=0), "block_size is 0"),
        (lambda c: plan(c, gpu="H100", max_model_len=0), "max_model_len is 0"),
        (lambda c: plan(c, gpu="H100", max_num_seqs=-4), "max_num_seqs is -4"),
        (lambda c: plan(c, gpu="H100", gpu_memory_utilization=1.5), "gpu_memory_utilization is 1.5"),
        (lambda c: plan(c, gpu="V100"), "Unknown GPU 'V100': the tables hold A100-40, A100-80, H100"),
        (lambda c: search(c, "H100", 0, 4), "nodes is 0"),
    ],
)
def test_bad_input_is_told_in_one_sentence(call, sentence):
    with pytest.raises((ConfigError, LayoutError, HardwareError), match=sentence) as caught:
        call(load("llama-3.1-8b"))
    assert "\n" not in str(caught.value)


def test_gpus_answer_to_their_usual_names():
    assert get_gpu("nvidia h100 80GB HBM3") is get_gpu("h100") is GPUS["H100"]
    assert get_gpu("A100").name == "A100-80" and get_gpu("a100-40gb").name == "A100-40"
    assert all(gpu.source and gpu.memory_source and gpu.link.source for gpu in GPUS.values())


# The command and the picture


def test_the_command_prints_a_plan(capsys):
    assert memory_command.main(["llama-3.1-405b", "--gpu", "H100", "--tp", "8", "--pp", "2"]) == 0
    out = capsys.readouterr().out
    assert "TP8 x PP2" in out and "KV cache size" in out and "tokens" in out


def test_the_command_takes_a_folder_and_lists_layouts(tmp_path, capsys):
    (tmp_path / "config.json").write_text((CATALOGUE / "qwen3-14b.json").read_text())
    assert memory_command.main([str(tmp_path), "--gpu", "L40S", "--nodes", "1", "--gpus-per-node", "4"]) == 0
    assert "TP4 x PP1" in capsys.readouterr().out
    assert (
        memory_command.main([str(tmp_path / "config.json"), "--gpu", "A100-40", "--gpu-memory-utilization", "0.7"]) == 1
    )
    assert (
        memory_command.main([str(tmp_path), "--gpu", "L40S", "--quantization", "int4", "--max-model-len", "8192"]) == 0
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llama-9", "--gpu", "H100"], "No model 'llama-9'"),
        (["llama-3.1-8b", "--gpu", "V100"], "Unknown GPU 'V100'"),
        (["llama-3.1-8b", "--gpu", "H100", "--tp", "3"], "Tensor parallel size 3 does not divide"),
        (["llama-3.1-8b", "--gpu", "H100", "--tp", "0"], "tp is 0"),
        (["llama-3.1-8b", "--gpu", "H100", "--quantization", "fp2"], "Unknown quantisation 'fp2'"),
        (["llama-3.1-8b", "--gpu", "H100", "--kv-cache-dtype", "fp2"], "Unknown KV cache type 'fp2'"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_2(arguments, sentence, capsys):
    assert memory_command.main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err


def test_the_catalogue_files_are_plain_json():
    for file in CATALOGUE.glob("*.json"):
        assert json.loads(file.read_text())["architectures"]


def test_bars_show_each_plan():
    plans = [plan(load("llama-3.1-70b"), gpu="H100", tp=tp, max_model_len=8192) for tp in (1, 2, 4)]
    (axis,) = memory_bars(plans).axes
    weights = axis.containers[0]
    assert [bar.get_width() for bar in weights] == [p.weights_per_gpu / GIB for p in plans]
    assert len(axis.get_yticklabels()) == 3
