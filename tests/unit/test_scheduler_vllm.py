"""The simulator against vLLM's own scheduler, step by step: what runs, how many tokens, which blocks, who is preempted.

Only the scheduler runs, with invented tokens in place of a model's: no weights, no server. Importing vLLM takes the time.
"""

import random

import pytest

from helpers.scheduler import Request, simulate
from helpers.trace_rules import Replay

OURS = 1_000_000  # what a request writes: token ids that no prompt has, and no other request writes


@pytest.fixture(scope="module")
def vllm_scheduler():
    """A maker of vLLM schedulers, and of requests for them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    model = ModelConfig(model="helpers/tiny/model", dtype="float32", max_model_len=2048)

    def make(blocks, block_size, max_num_batched_tokens, max_num_seqs, prefix_caching):
        config = VllmConfig(
            model_config=model,
            scheduler_config=SchedulerConfig(
                max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, max_model_len=2048,
                enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=False,
            ),
            cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=prefix_caching),
        )  # fmt: skip
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        )
        return Scheduler(
            vllm_config=config, kv_cache_config=cache, structured_output_manager=StructuredOutputManager(config),
            block_size=block_size, hash_block_size=block_size, log_stats=True,
        )  # fmt: skip

    return make


def vllm_request(request: Request, number: int, block_size: int):
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request as VllmRequest

    prompt = request.prompt
    if isinstance(prompt, int):
        prompt = range(OURS * (number + 1), OURS * (number + 1) + prompt)
    return VllmRequest(
        request_id=request.id, prompt_token_ids=list(prompt), pooling_params=None,
        sampling_params=SamplingParams(max_tokens=request.output, ignore_eos=True),
        block_hasher=get_request_block_hasher(block_size, sha256),
    )  # fmt: skip


def serve(scheduler, requests: list[Request], block_size: int) -> list[dict]:
    """What vLLM's scheduler does in each step."""
    from vllm.v1.outputs import ModelRunnerOutput

    coming = sorted(enumerate(requests), key=lambda item: item[1].arrival)
    seen, step, written = [], 0, 0
    while coming or scheduler.has_unfinished_requests():
        while coming and coming[0][1].arrival <= step:
            scheduler.add_request(vllm_request(coming[0][1], coming[0][0], block_size))
            coming.pop(0)
        if scheduler.has_unfinished_requests():
            output = scheduler.schedule()
            names = list(output.num_scheduled_tokens)
            tables = {
                r.request_id: scheduler.kv_cache_manager.get_block_ids(r.request_id)[0] for r in scheduler.running
            }
            frame = {
                "step": step, "scheduled": dict(output.num_scheduled_tokens), "tables": tables,
                "waiting": len(scheduler.waiting), "usage": scheduler.kv_cache_manager.usage,
            }  # fmt: skip
            sampled = []
            for name in names:
                request = scheduler.requests[name]
                written += 1
                sampled.append([OURS * 1000 + written] if request.num_computed_tokens >= request.num_tokens else [])
            told = ModelRunnerOutput(
                req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=sampled,
                logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
            )  # fmt: skip
            outputs = scheduler.update_from_output(output, told)
            stats = outputs[0].scheduler_stats
            frame["after"] = stats.kv_cache_usage
            frame["finished"] = [o.request_id for o in outputs[0].outputs if o.finish_reason is not None]
            frame["prefix"] = (stats.prefix_cache_stats.queries, stats.prefix_cache_stats.hits)
            seen.append(frame)
        step += 1
    return seen


def simulated(trace) -> list[dict]:
    """The same, from a trace."""
    usable, frames, replay = trace.settings["blocks"] - 1, [], Replay(trace)
    for record in replay.steps():
        finished = [event[1] for event in record["events"] if event[0] == "finish"]
        decoding = {name: 1 for name in replay.decoding if name not in replay.scheduled}
        for i in range(record["count"]):
            frames.append({
                "step": record["step"] + i, "scheduled": {**replay.scheduled, **decoding},
                "tables": {name: list(blocks) for name, blocks in replay.tables.items()}, "waiting": record["waiting"],
                "usage": record["blocks"] / usable, "after": record["blocks_after"] / usable, "finished": finished,
            })  # fmt: skip
    return frames


def workload(seed: int) -> tuple[list[Request], dict]:
    """A random one, small enough to be short of blocks, seats and budget at times, with prompts that begin alike."""
    chance = random.Random(seed)
    size = chance.choice([2, 4, 8])
    blocks = chance.randint(6, 24)
    seats = chance.randint(1, 8)
    longest = (blocks - 1) * size
    requests = []
    for i in range(chance.randint(1, 12)):
        output = chance.randint(1, longest // 2)
        prompt = chance.randint(1, longest + 1 - output)
        ids = tuple((k if k < (i % 3) * size else k + 1000 * (i % 2 + 1)) + 10 for k in range(prompt))
        requests.append(Request(f"r{i}", chance.choice([prompt, ids]), output, chance.randint(0, 20)))
    settings = {
        "blocks": blocks, "block_size": size, "max_num_seqs": seats,
        "max_num_batched_tokens": seats + chance.randint(0, 3 * size), "prefix_caching": chance.random() < 0.6,
    }  # fmt: skip
    return requests, settings


def test_every_step_is_vllms(vllm_scheduler) -> None:
    preemptions = hits = 0
    for seed in range(120):
        requests, settings = workload(seed)
        trace = simulate(requests, **settings)
        real = serve(vllm_scheduler(**settings), requests, settings["block_size"])
        ours = simulated(trace)
        for theirs, frame in zip(real, ours, strict=True):
            expected = {field: theirs[field] for field in frame}
            for field in ("usage", "after"):
                assert frame.pop(field) == pytest.approx(expected.pop(field)), (seed, field, theirs["step"])
            assert frame == expected, (seed, settings)
        assert (trace.prefix_queries, trace.prefix_hits) == tuple(
            map(sum, zip(*(f["prefix"] for f in real), strict=True))
        )
        preemptions, hits = preemptions + trace.preemptions, hits + trace.prefix_hits
    assert preemptions > 100 and hits > 200  # or the workloads did not try what they should
