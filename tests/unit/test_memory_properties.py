"""What must hold for any model and layout."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.hardware import GPUS
from helpers.memory import (
    kv_bytes_per_token,
    kv_cache_tokens,
    plan,
)
from helpers.models import ModelConfig
from helpers.partition import stage_layers
from helpers.weights import stage_weight_bytes

dense_models = st.builds(
    lambda layers, kv, group, head_dim, ffn, vocab, tied: ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": layers,
            "hidden_size": kv * group * head_dim,
            "num_attention_heads": kv * group,
            "num_key_value_heads": kv,
            "intermediate_size": 64 * ffn,
            "vocab_size": vocab,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": tied,
        }
    ),
    layers=st.integers(1, 96),
    kv=st.sampled_from([1, 2, 4, 8]),
    group=st.sampled_from([1, 2, 4, 8]),
    head_dim=st.sampled_from([32, 64, 128]),
    ffn=st.integers(1, 512),
    vocab=st.integers(100, 260_000),
    tied=st.booleans(),
)
powers = st.sampled_from([1, 2, 4, 8])


@settings(max_examples=60, deadline=None)
@given(dense_models, powers, st.integers(1, 8), st.integers(0, 10**12), st.integers(1, 5))
def test_kv_tokens_are_linear_in_bytes(config, tp, pp, available, times):
    tp, pp = math.gcd(tp, config.num_attention_heads), min(pp, config.num_hidden_layers)
    a_token = kv_bytes_per_token(config, tp=tp, pp=pp)
    tokens = kv_cache_tokens(config, available, tp=tp, pp=pp)
    assert tokens * a_token <= available < (tokens + 16) * a_token
    assert kv_cache_tokens(config, times * tokens * a_token, tp=tp, pp=pp) == times * tokens
    assert kv_bytes_per_token(config, tp=tp, pp=pp, dtype="float32") == 2 * a_token


@settings(max_examples=60, deadline=None)
@given(dense_models, powers, st.integers(1, 8))
def test_more_gpus_never_need_more_memory_each(config, tp, pp):
    tp, pp = math.gcd(tp, config.num_attention_heads), min(pp, config.num_hidden_layers)
    for more in ({"tp": math.gcd(2 * tp, config.num_attention_heads), "pp": pp}, {"tp": tp, "pp": pp + 1}):
        if more["pp"] > config.num_hidden_layers:
            continue
        assert max(stage_weight_bytes(config, **more)) <= max(stage_weight_bytes(config, tp=tp, pp=pp))
        assert kv_bytes_per_token(config, **more) <= kv_bytes_per_token(config, tp=tp, pp=pp)


@settings(max_examples=60, deadline=None)
@given(dense_models, st.sampled_from(sorted(GPUS)), powers, st.integers(1, 4), st.integers(1, 4096), st.booleans())
def test_a_plans_parts_sum_to_its_whole(config, gpu, tp, pp, length, eager):
    tp, pp = math.gcd(tp, config.num_attention_heads), min(pp, config.num_hidden_layers)
    p = plan(config, gpu=gpu, tp=tp, pp=pp, max_model_len=length, enforce_eager=eager)
    assert sum(p.breakdown.values()) == p.gpu_memory == GPUS[gpu].memory_bytes
    assert p.breakdown["weights"] == p.weights_per_gpu and p.breakdown["kv_cache"] == p.kv_cache_bytes
    assert p.fits == (p.max_concurrency * math.ceil(length / 16) > math.ceil(length / 16) + 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64))
def test_stages_hold_every_layer_once(layers, pp):
    if pp <= layers:
        counts = stage_layers(layers, pp)
        assert sum(counts) == layers and max(counts) - min(counts) <= 1 and counts[-1] == layers // pp
