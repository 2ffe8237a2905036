"""Predictions beside a server's log, the fewest GPUs, and the planner's answers."""

import pytest

from helpers import plots, served
from helpers.memory import LayoutError, fewest_gpus, load
from helpers.server_log import ServerLog, read_log
from helpers.tiny import MODEL_DIR
from helpers.widgets import memory_planner

START = "(EngineCore pid=1) INFO 11-21 12:44:44 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
CPU_LOG = f"""{START}model='x', tensor_parallel_size=1, pipeline_parallel_size=1, decode_context_parallel_size=1, kv_cache_dtype=auto, device_config=cpu
(Worker pid=2) INFO 11-21 12:44:52 [cpu_worker.py:260] Explicitly set (1.0/7.09) GiB for KV cache on node 0.
(EngineCore pid=1) INFO 11-21 12:44:52 [kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens, Maximum concurrency for 2,048 tokens per request: 128.00x
"""
GPU_LOG = f"""{START}model='x', tensor_parallel_size=4, pipeline_parallel_size=1, kv_cache_dtype=auto, device_config=cuda
(Worker pid=2) INFO 11-21 06:17:00 [gpu_worker.py:456] Available KV cache memory: 94.44 GiB
(EngineCore pid=1) INFO 11-21 06:17:00 [kv_cache_utils.py:1] GPU KV cache size: 1,237,872 tokens
(EngineCore pid=1) INFO 11-21 06:17:00 [kv_cache_utils.py:2] Maximum concurrency for 8,192 tokens per request: 151.11x
"""


def test_the_small_llama_on_a_cpu_to_the_token():
    assert served.predicted_tokens(load(MODEL_DIR), read_log(CPU_LOG)) == 262_144


def test_a_server_on_gpus_by_its_layout_and_memory():
    log = read_log(GPU_LOG)
    assert (log.tp, log.pp, log.kv_cache_dtype) == (4, 1, "auto")
    assert served.predicted_tokens(load("llama-3.1-70b"), log) == pytest.approx(log.kv_cache_tokens, rel=0.001)


@pytest.mark.parametrize(
    ("model", "log", "sentence"),
    [
        ("llama-3.1-8b", ServerLog(), "does not say how much memory"),
        ("mistral-7b-v0.1", read_log(GPU_LOG), "sliding window"),
    ],
)
def test_what_cannot_be_predicted_is_said(model, log, sentence):
    with pytest.raises(served.OutOfReachError, match=sentence):
        served.predicted_tokens(load(model), log)


def test_without_a_server_both_say_so_and_go_on(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:9/v1")
    served.printed()
    assert served.comparison() is None
    said = capsys.readouterr().out
    assert said.startswith("No log to read here: ") and "\nNo comparison here: " in said


def test_the_fewest_gpus():
    plans = [fewest_gpus(load(f"llama-3.1-{size}"), "H100", max_model_len=131_072) for size in ("8b", "70b", "405b")]
    assert [(p.gpus, p.layout) for p in plans] == [(1, "TP1 x PP1"), (4, "TP4 x PP1"), (12, "TP4 x PP3")]
    with pytest.raises(LayoutError, match="does not fit on 1 nodes of 4 H100"):
        fewest_gpus(load("llama-3.1-405b"), "H100", most_nodes=1)


def test_the_planner_draws_what_fits_and_says_what_does_not(monkeypatch):
    said = []
    monkeypatch.setattr(plots, "sentence", lambda text, draw=plots.sentence: said.append(text) or draw(text))
    planner = memory_planner()
    first = planner._picture.value
    for control, value in (("tp", 6), ("model", "mistral-7b-v0.1"), ("max_model_len", 131_072), ("tp", 4)):
        planner._controls[control].value = value
    assert planner._picture.value != first and planner._picture.value[:4] == b"\x89PNG"
    assert "does not divide the 64 attention heads" in said[0]
    assert said[-1] == "mistral-7b-v0.1 reads at most 32,768 tokens."
