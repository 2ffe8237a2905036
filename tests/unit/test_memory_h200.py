"""The memory sums against what servers on H200s printed: 19, part by part and end to end, and others not used for the sums."""

import pytest

from helpers.activations import activation_bytes
from helpers.bench_matrix import flag_value, shape_of
from helpers.bench_store import read_all
from helpers.calibration import calibrate, measured_memory
from helpers.memory import kv_cache_tokens, load, plan, read_log
from helpers.parallel_data import BENCH, FOUR
from helpers.weights import stage_weight_bytes

GIB = 2**30
RUNS = measured_memory()["runs"]
EACH_RUN = pytest.mark.parametrize("name", RUNS)

# A GiB printed with two decimals, as printed.
ROUNDING = 0.005 * GIB


def flags_of(name: str) -> dict:
    return {"gpu": "H200", **RUNS[name]["flags"]}


def layout(name: str) -> dict:
    return {key: RUNS[name]["flags"].get(key, 1) for key in ("tp", "pp")}


def log_of(name: str):
    return read_log("\n".join(RUNS[name]["lines"]))


@EACH_RUN
def test_tokens_printed_for_the_memory_printed(name):
    """Rank 0's figure suffices: in the one run with two stages the first is the tightest."""
    flags, log = RUNS[name]["flags"], log_of(name)
    cache = {"dtype": flags.get("kv_cache_dtype", "auto"), "max_model_len": log.max_model_len}
    in_flight = flags.get("max_num_batched_tokens", 8192)  # one batch, as vLLM 0.25 counts
    tokens = kv_cache_tokens(
        load(RUNS[name]["model"]), log.available_kv_gib[0] * GIB, **layout(name), **cache, in_flight_tokens=in_flight
    )
    rounding = ROUNDING / (log.available_kv_gib[0] * GIB)
    assert tokens == pytest.approx(log.kv_cache_tokens, rel=rounding + 2e-5)
    assert rounding < 2e-4
    assert tokens / log.max_model_len == pytest.approx(log.max_concurrency, rel=2e-4, abs=0.01)


@EACH_RUN
def test_cache_end_to_end(name):
    """In-sample: within 0.3% of the printed memory and, but for the long window, of the printed tokens."""
    log, p = log_of(name), plan(load(RUNS[name]["model"]), **flags_of(name))
    assert p.kv_cache_bytes == pytest.approx(log.available_kv_gib[0] * GIB, rel=0.003)
    if name == "mistral-7b-long":  # vLLM 0.25 counts one batch in flight, plan() two as 0.32 does
        tokens = kv_cache_tokens(
            load("mistral-7b-v0.1"), p.kv_cache_bytes, max_model_len=p.max_model_len, in_flight_tokens=8192
        )
        assert p.kv_cache_tokens < 0.61 * log.kv_cache_tokens
    else:
        tokens = p.kv_cache_tokens
        assert abs(tokens - log.kv_cache_tokens) <= p.tokens_error + 16
        assert p.max_concurrency == pytest.approx(log.max_concurrency, rel=0.003)
    assert tokens == pytest.approx(log.kv_cache_tokens, rel=0.003)


@EACH_RUN
def test_weights_as_loaded(name):
    """PyTorch hands out memory in 2 MiB pieces, which adds up to 0.2 GiB where matrices do not fill them."""
    predicted = max(stage_weight_bytes(load(RUNS[name]["model"]), **layout(name)))
    loaded = max(log_of(name).model_loading_gib) * GIB
    assert -0.07 * GIB < loaded - predicted < 0.2 * GIB
    assert predicted == pytest.approx(loaded, rel=0.008)


@EACH_RUN
def test_activations_of_the_profiled_step(name):
    flags, layers = RUNS[name]["flags"], layout(name)
    batch = {
        "batched_tokens": flags.get("max_num_batched_tokens", 8192),
        "num_seqs": flags.get("max_num_seqs", 1024),
        "enforce_eager": flags.get("enforce_eager", False),
    }
    for stage, printed in enumerate(RUNS[name]["peak_activation_gib"]):
        predicted = activation_bytes(load(RUNS[name]["model"]), stage=stage, **layers, **batch)
        assert predicted / GIB == pytest.approx(printed, abs=0.07)


def test_the_calibration_states_its_error():
    fitted = calibrate()
    assert {kind: round(size / GIB, 2) for kind, size in fitted.non_torch.items()} == {
        "none": 0.22,
        "tensor": 0.56,
        "pipeline": 0.06,
    }
    assert fitted.cuda_graphs / GIB == pytest.approx(0.53, abs=0.01)
    assert set(fitted.residuals) == {*RUNS, "8b", "tp4", "tp2pp2"}
    assert 0.15 < fitted.error / GIB < 0.19
    llamas = [abs(fitted.residuals[run]) / GIB for run in ("8b", "tp4", "tp2pp2")]
    assert max(llamas) < 0.03


def test_only_the_older_runner_sets_memory_aside_for_graphs():
    """In these logs: mixtures but DeepSeek-V2, and none with --enforce-eager."""
    estimated = {name for name, run in RUNS.items() if any("Estimated CUDA graph" in line for line in run["lines"])}
    plans = {name: plan(load(RUNS[name]["model"]), **flags_of(name)) for name in RUNS}
    assert estimated == {name for name, p in plans.items() if p.breakdown["cuda_graphs"]}


def servers_measured_for_speed():
    """Servers of helpers/data/bench that sized their cache themselves; plan() was calibrated without them."""
    for results in [*read_all(BENCH), *read_all(FOUR)]:
        for server in {each["fingerprint"]: each for each in results.servers}.values():
            if flag_value(server["flags"], "kv-cache-memory-bytes") is None:
                yield pytest.param(server, id=f"{server['model']} {server['name']} {results.machine['id']}")


@pytest.mark.parametrize("server", servers_measured_for_speed())
def test_the_cache_of_servers_that_the_sums_were_not_fitted_to(server):
    flags = server["flags"]
    planned = plan(
        shape_of(server["config"], server["model"], flags), gpu="H200", tp=server["tp"], pp=server["pp"],
        max_model_len=int(flag_value(flags, "max-model-len")), max_num_seqs=int(flag_value(flags, "max-num-seqs")),
        gpu_memory_utilization=float(flag_value(flags, "gpu-memory-utilization") or 0.92),
        enforce_eager="--enforce-eager" in flags, expert_parallel="--enable-expert-parallel" in flags,
    )  # fmt: skip
    printed = server["log"]["kv_cache_tokens"]
    assert planned.kv_cache_tokens == pytest.approx(printed, rel=0.01)
    missed = (planned.kv_cache_tokens - printed) * planned.kv_bytes_per_token / server["tp"]
    assert abs(missed) < 0.001 * planned.gpu_memory
