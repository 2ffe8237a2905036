"""Attention: both ways agree with one another and with plain loops, and the counted work is the formula's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.attention import AttentionError, CacheFullError, KVCache, Weights, Work, decode, step
from helpers.attention_work import cache_bound_length, decode_multiply_adds, growth, step_work
from helpers.kv_cache import kv_bytes_per_layer
from helpers.memory import LayoutError, load, weight_bytes
from helpers.roofline import decode_seconds

few = st.integers(1, 4)
many = st.integers(1, 9)


@st.composite
def layers(draw) -> Weights:
    kv_heads, sharing, width = draw(few), draw(few), draw(many)
    return Weights.random(draw(st.integers(1, 12)), kv_heads * sharing, kv_heads, head_dim=width, seed=draw(many))


def tokens_of(weights: Weights, count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, weights.hidden))


def by_loops(x: np.ndarray, weights: Weights) -> tuple[np.ndarray, int]:
    """The layer one token and one head at a time, and the pairs of query and key that it looked at."""
    outputs, pairs, width = np.zeros_like(x), 0, weights.head_dim
    for i in range(len(x)):
        heads = []
        for head in range(weights.heads):
            own = slice(head * width, (head + 1) * width)
            shared = head // (weights.heads // weights.kv_heads)
            theirs = slice(shared * width, (shared + 1) * width)
            query = x[i] @ weights.query[:, own]
            scores = [query @ (x[j] @ weights.key[:, theirs]) / width**0.5 for j in range(i + 1)]
            pairs += len(scores)
            odds = np.exp(np.array(scores) - max(scores))
            values = np.array([x[j] @ weights.value[:, theirs] for j in range(i + 1)])
            heads.append(odds / odds.sum() @ values)
        outputs[i] = np.concatenate(heads) @ weights.output
    return outputs, pairs


@given(layers(), many)
@settings(max_examples=40, deadline=None)
def test_it_is_attention(weights, count):
    x, work = tokens_of(weights, count), Work()
    expected, pairs = by_loops(x, weights)
    np.testing.assert_allclose(step(x, weights, work=work), expected, rtol=0, atol=1e-9)
    matrices = sum(matrix.size for matrix in (weights.query, weights.key, weights.value, weights.output))
    masked = weights.heads * count * (count - 1) // 2  # computed and thrown away
    assert work.multiply_adds == count * matrices + 2 * weights.head_dim * (pairs + masked)


@given(layers(), many, many)
@settings(max_examples=60, deadline=None)
def test_with_and_without_a_cache_the_answers_are_equal_and_the_work_is_the_formulas(weights, prompt, count):
    answers = [decode(tokens_of(weights, prompt), count, weights, cached=cached) for cached in (True, False)]
    np.testing.assert_allclose(answers[0].outputs, answers[1].outputs, rtol=0, atol=1e-6)
    contexts = range(prompt, prompt + count)
    with_cache = [step_work(weights, prompt if i == 0 else 1, context) for i, context in enumerate(contexts)]
    assert answers[0].work == with_cache
    assert answers[1].work == [step_work(weights, context, context, cached=False) for context in contexts]
    for answer, cached in zip(answers, (True, False), strict=True):
        assert answer.total.multiply_adds == decode_multiply_adds(weights, prompt, count, cached)


@given(layers(), st.lists(many, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_prompt_may_come_in_pieces(weights, pieces):
    x, cache = tokens_of(weights, sum(pieces)), KVCache(sum(pieces), weights)
    ends = np.cumsum(pieces)
    outputs = [step(x[end - size : end], weights, cache) for size, end in zip(pieces, ends, strict=True)]
    np.testing.assert_allclose(np.vstack(outputs), step(x, weights), rtol=0, atol=1e-6)
    assert (
        cache.keys.nbytes + cache.values.nbytes
        == cache.bytes_reserved
        == sum(pieces) * 2 * weights.kv_heads * weights.head_dim * 8
    )


def test_large_scores_do_not_overflow():
    weights = Weights.random(8, 2, 1)
    outputs = step(1e4 * tokens_of(weights, 5), weights)
    assert np.isfinite(outputs).all()


def test_the_work_of_a_token_grows_with_the_context_or_with_its_square():
    """Twice the context: twice the attention with the cache, four times without, once the projections are small beside it."""
    weights = Weights.random(16, 4, 1)
    for cached, factor in ((True, 2), (False, 4)):
        work = [step_work(weights, 1 if cached else n, n, cached).multiply_adds for n in (50_000, 100_000)]
        assert work[1] / work[0] == pytest.approx(factor, rel=0.001)
        answer = [decode_multiply_adds(weights, 1, n, cached) for n in (50_000, 100_000)]
        assert answer[1] / answer[0] == pytest.approx(2 * factor, rel=0.001)


def test_attention_outgrows_the_projections_where_the_docstring_says():
    weights = Weights.random(64, 8, 2)
    context = 64 + 64 * 2 // 8
    assert step_work(weights, 1, context).multiply_adds == 2 * step_work(weights, 1, 0).multiply_adds


def test_the_growth_table_counts_and_measures():
    weights = Weights.random(32, 4, 2)
    table = growth(weights, [1, 8, 64], repeats=1)
    counted = table["multiply_adds"]
    assert list(counted["with"]) == [step_work(weights, 1, n).multiply_adds for n in (1, 8, 64)]
    assert list(counted["without"]) == [step_work(weights, n, n).multiply_adds for n in (1, 8, 64)]
    assert (table["milliseconds"] > 0).all(axis=None)


def test_fewer_kv_heads_shrink_the_cache_and_not_the_multiply_adds_of_attention():
    full, grouped = (Weights.random(64, 8, kv_heads) for kv_heads in (8, 2))
    assert KVCache(10, full).bytes_reserved == 4 * KVCache(10, grouped).bytes_reserved
    many_reads, few_reads = (step_work(weights, 1, 1000) for weights in (full, grouped))
    assert many_reads.kv_read == 4 * few_reads.kv_read
    projections = 2 * 64 * 8 * (8 - 2)
    assert many_reads.multiply_adds - few_reads.multiply_adds == projections


def test_the_cache_is_as_large_as_the_memory_lesson_says():
    config = load("llama-3.1-8b")
    weights = Weights.random(4, config.num_attention_heads, config.num_key_value_heads, head_dim=config.head_dim)
    assert KVCache(3, weights).bytes_reserved == 3 * kv_bytes_per_layer(config, dtype="float32") * 2


# --- a real model -------------------------------------------------------------------------------------------------


def test_the_length_at_which_reading_the_cache_takes_over():
    config = load("llama-3.1-8b")
    assert cache_bound_length(config, "H100") == -(-weight_bytes(config) // 131_072) == 122_533
    assert cache_bound_length(config, "H200") == 122_533
    assert cache_bound_length(config, "H100", dtype="fp8") == 2 * 122_533 - 1
    assert cache_bound_length(config, "H100", batch=32) == 3830


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b", "qwen2.5-32b", "mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("tp", [1, 4])
def test_a_step_takes_twice_as_long_there(name, batch, tp):
    config, layout = load(name), {"tp": tp, "batch": batch}
    length = cache_bound_length(config, "H100", **layout)
    empty, before, there = (
        decode_seconds(config, "H100", **layout, context=context) for context in (0, length - 1, length)
    )
    assert before < 2 * empty <= there * (1 + 1e-12)


def test_where_arithmetic_binds_the_cache_must_outgrow_that_too():
    config, batch = load("llama-3.1-8b"), 1000
    length = cache_bound_length(config, "L40S", batch=batch)
    empty = decode_seconds(config, "L40S", batch=batch)
    assert decode_seconds(config, "L40S", batch=batch, context=length - 1) == empty
    assert decode_seconds(config, "L40S", batch=batch, context=length + 1) > empty
    assert batch * length * 131_072 > weight_bytes(config)


def test_a_window_may_keep_the_cache_small_for_ever():
    config = load("mistral-7b-v0.1")
    assert cache_bound_length(config, "H100") is None
    assert cache_bound_length(config, "H100", batch=32) < config.sliding_window


# --- bad input ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_named():
    weights = Weights.random(8, 2, 1)
    with pytest.raises(AttentionError, match="3 KV heads do not divide 8 heads"):
        Weights.random(64, 8, 3)
    with pytest.raises(AttentionError, match=r"7 heads do not divide a hidden size of 64; give head_dim"):
        Weights.random(64, 7, 7)
    with pytest.raises(LayoutError, match="kv_heads is 0"):
        Weights.random(64, 8, 0)
    with pytest.raises(AttentionError, match=r"The key matrix is \(8, 8\); with these heads it must be \(8, 4\)"):
        Weights(weights.query, weights.query, weights.value, weights.output, 2, 1)
    with pytest.raises(AttentionError, match=r"an array \(3, 9\); this layer takes \(tokens, 8\)"):
        step(np.zeros((3, 9)), weights)
    with pytest.raises(AttentionError, match=r"an array \(8,\)"):
        step(np.zeros(8), weights, KVCache(1, weights))


@pytest.mark.parametrize("cached", [True, False])
def test_an_empty_prompt_is_named(cached):
    weights = Weights.random(8, 2, 1)
    with pytest.raises(AttentionError, match="The prompt is empty"):
        decode(np.zeros((0, 8)), 3, weights, cached=cached)
    with pytest.raises(LayoutError, match="tokens is 0"):
        decode(np.zeros((1, 8)), 0, weights, cached=cached)


def test_a_full_cache_is_named_and_left_as_it_was():
    weights = Weights.random(8, 2, 1)
    cache = KVCache(4, weights)
    step(tokens_of(weights, 3), weights, cache)
    with pytest.raises(CacheFullError, match="holds 3 of 4 tokens and 2 more do not fit; reserve a capacity of 5"):
        step(tokens_of(weights, 2), weights, cache)
    assert cache.length == 3 and cache.keys.nbytes == cache.values.nbytes == 3 * cache.bytes_reserved // 8
    with pytest.raises(LayoutError, match="capacity is 0"):
        KVCache(0, weights)


def test_a_cache_of_another_layer_is_named():
    weights, other = Weights.random(8, 2, 1), Weights.random(8, 2, 2)
    with pytest.raises(AttentionError, match=r"The cache keeps \(2, 4\) .* and these are \(1, 4\)"):
        step(tokens_of(weights, 1), weights, KVCache(4, other))
