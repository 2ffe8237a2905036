"""The work of attention by formula, what it grows like, and the length at which a real model feels it."""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.attention import KVCache, Weights, Work, step
from helpers.hardware import GPU, get_gpu
from helpers.kv_cache import kv_bytes_per_layer
from helpers.models import ModelConfig
from helpers.partition import positive
from helpers.roofline import decode_seconds
from helpers.weights import active_weight_bytes

BYTES = 8  # of a float64


def step_work(weights: Weights, tokens: int, context: int, cached: bool = True) -> Work:
    """What `step` does for `tokens` new tokens of `context`, by formula; without a cache, tokens = context.

    multiply_adds = tokens x hidden x head_dim x (2 heads + 2 kv_heads) + 2 x tokens x context x heads x head_dim:
    the four projections, then scores and weighted values. Attention outgrows the projections where context exceeds
    hidden x (1 + kv_heads / heads), so that at short contexts even recomputing looks linear.
    """
    hidden, width = weights.hidden, weights.head_dim
    queries, new_keys = tokens * weights.heads * width, tokens * weights.kv_heads * width
    matrices = 2 * hidden * width * (weights.heads + weights.kv_heads)
    scores, kv = tokens * context * weights.heads, 2 * context * weights.kv_heads * width
    appended = 2 * new_keys if cached else 0
    return Work(
        multiply_adds=tokens * matrices + 2 * scores * width,
        read=BYTES * (3 * tokens * hidden + matrices + 2 * queries + scores + kv + appended),
        written=BYTES * (2 * queries + 2 * new_keys + scores + tokens * hidden + appended),
        kv_read=BYTES * kv,
    )


def decode_multiply_adds(weights: Weights, prompt: int, tokens: int, cached: bool) -> int:
    """Multiply-adds to read a prompt and write `tokens` tokens, by formula.

    With c for a token's projections and a for one query on one key, and contexts t = prompt ... prompt + tokens - 1:
    c (prompt + tokens - 1) + a (prompt^2 + sum of t after the first) with the cache: O(n^2);
    sum of c t + a t^2 without: O(n^3).
    """
    positive(prompt=prompt, tokens=tokens)
    c = 2 * weights.hidden * weights.head_dim * (weights.heads + weights.kv_heads)
    a = 2 * weights.heads * weights.head_dim
    more = tokens - 1
    contexts = tokens * prompt + tokens * more // 2
    if cached:
        return c * (prompt + more) + a * (prompt**2 + contexts - prompt)
    return c * contexts + a * (tokens * prompt**2 + prompt * tokens * more + more * tokens * (2 * tokens - 1) // 6)


def growth(weights: Weights, contexts: Sequence[int], *, repeats: int = 3) -> pd.DataFrame:
    """The work and the time of one more token at each context, counted and measured, with the cache and without.

    Columns: multiply_adds and milliseconds (the best of `repeats`), each "with" and "without"; the index is the context.
    """
    positive(repeats=repeats, **{f"context {context}": context for context in contexts})
    x = np.random.default_rng(0).standard_normal((max(contexts), weights.hidden))
    rows = [
        dict(zip(("with", "without"), (_one_token(x[:n], weights, c, repeats) for c in (True, False)), strict=True))
        for n in contexts
    ]
    figures = {
        (what, way): [row[way][i] for row in rows]
        for i, what in enumerate(("multiply_adds", "milliseconds"))
        for way in ("with", "without")
    }
    return pd.DataFrame(figures, index=pd.Index(list(contexts), name="context"))


def _one_token(x: np.ndarray, weights: Weights, cached: bool, repeats: int) -> tuple[int, float]:
    """(multiply-adds, milliseconds) of the last token of x (context, hidden)."""
    seconds = []
    for _ in range(repeats):
        cache, work = None, Work()
        if cached:
            cache = KVCache(len(x), weights)
            cache.append(*np.ones((2, len(x) - 1, weights.kv_heads, weights.head_dim)))  # what it holds costs the same
        began = time.perf_counter()
        step(x[-1:] if cached else x, weights, cache, work)
        seconds.append(time.perf_counter() - began)
    return work.multiply_adds, 1000 * min(seconds)


def cache_bound_length(
    config: ModelConfig, gpu: str | GPU, *, tp: int = 1, batch: int = 1, dtype: str = "auto"
) -> int | None:
    """Tokens of context from which a decode step spends most of its time on reading the cache.

    There batch x tokens x layers x KV bytes >= weights / tp, and together they take no less time than the arithmetic.
    For one request the GPU's speed cancels out. None for a sliding window that keeps the cache below that.
    Compare with helpers.roofline.decode_seconds, which doubles from an empty cache to this length.
    """
    gpu = get_gpu(gpu)
    step_bytes = decode_seconds(config, gpu, tp=tp, batch=batch) * gpu.bandwidth  # bytes that fit into an empty step
    weights = active_weight_bytes(config, batch) / tp
    token = batch * config.num_hidden_layers * kv_bytes_per_layer(config, tp=tp, dtype=dtype)
    length = int(-(-max(weights, step_bytes - weights) // token))
    return None if config.sliding_window and length > config.sliding_window else length
