"""Multi-head attention with grouped queries in NumPy, with and without a KV cache, counting its own work.

One layer of a Llama without its positions (RoPE): those turn queries and keys by an angle before they are compared, and
change neither what is kept nor how much is computed. Everything is float64, so that both ways agree to 1e-6 and better.

Shapes are (tokens, ...): `tokens` are the new ones, `context` is how many there are with those before them.
With the cache a new token costs O(context), and an answer of n tokens O(n^2). Without it every token so far is computed
anew, O(context^2) a token and O(n^3) an answer. `helpers.attention_work` has the formulas.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from helpers.errors import WorkshopError
from helpers.partition import positive

Array = NDArray[np.float64]


class AttentionError(WorkshopError):
    """Shapes that attention cannot be computed for."""


class CacheFullError(AttentionError):
    """More tokens than the cache has room for."""


@dataclass
class Work:
    """What was done: multiply-adds, and bytes read and written by matrix products and by the cache.

    `kv_read`, a part of `read`, is bytes of keys and values. The mask and the softmax, which multiply no matrices, are
    left out; so is the saving of real kernels, which skip the half of a prompt's scores that the mask throws away.
    """

    multiply_adds: int = 0
    read: int = 0
    written: int = 0
    kv_read: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The matrix product a @ b (..., m, k) x (..., k, n) -> (..., m, n): a multiply-add for each k of each result."""
        product: Array = a @ b
        self.multiply_adds += product.size * a.shape[-1]
        self.read += a.nbytes + b.nbytes
        self.written += product.nbytes
        return product


@dataclass(frozen=True)
class Weights:
    """The four matrices of an attention layer.

    query (hidden, heads x head_dim); key and value (hidden, kv_heads x head_dim); output (heads x head_dim, hidden).
    With kv_heads below heads, heads / kv_heads query heads share each key and value head (GQA): the cache shrinks so.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    heads: int
    kv_heads: int

    def __post_init__(self) -> None:
        positive(heads=self.heads, kv_heads=self.kv_heads)
        if self.heads % self.kv_heads:
            raise AttentionError(
                f"{self.kv_heads} KV heads do not divide {self.heads} heads; each must serve equally many of them."
            )
        wide, narrow = (self.hidden, self.heads * self.head_dim), (self.hidden, self.kv_heads * self.head_dim)
        for name, shape in {"query": wide, "key": narrow, "value": narrow, "output": wide[::-1]}.items():
            if (found := getattr(self, name).shape) != shape:
                raise AttentionError(f"The {name} matrix is {found}; with these heads it must be {shape}.")

    @classmethod
    def random(cls, hidden: int, heads: int, kv_heads: int, *, head_dim: int | None = None, seed: int = 0) -> "Weights":
        """Weights drawn from a normal distribution of variance 1 / rows; head_dim is hidden / heads unless given.

        Raises AttentionError for sizes that do not divide one another.
        """
        positive(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=1 if head_dim is None else head_dim)
        if head_dim is None and hidden % heads:
            raise AttentionError(f"{heads} heads do not divide a hidden size of {hidden}; give head_dim.")
        width = head_dim or hidden // heads
        generator = np.random.default_rng(seed)

        def matrix(rows: int, columns: int) -> np.ndarray:
            drawn: Array = generator.standard_normal((rows, columns)) / rows**0.5
            return drawn

        narrow = kv_heads * width
        projections = matrix(hidden, heads * width), matrix(hidden, narrow), matrix(hidden, narrow)
        return cls(*projections, matrix(heads * width, hidden), heads, kv_heads)

    @property
    def hidden(self) -> int:
        """Width of a token's state: rows of the query matrix."""
        return len(self.query)

    @property
    def head_dim(self) -> int:
        """Numbers in one head's query, key or value: columns of the query matrix / heads."""
        return int(self.query.shape[1]) // self.heads


class KVCache:
    """Keys and values of the tokens so far, in arrays (capacity, kv_heads, head_dim) that are reserved at once."""

    def __init__(self, capacity: int, weights: Weights):
        positive(capacity=capacity)
        shape = (capacity, weights.kv_heads, weights.head_dim)
        self._keys, self._values, self.length = np.zeros(shape), np.zeros(shape), 0

    @property
    def keys(self) -> np.ndarray:
        """(length, kv_heads, head_dim), a view."""
        return self._keys[: self.length]

    @property
    def values(self) -> np.ndarray:
        """(length, kv_heads, head_dim), a view."""
        return self._values[: self.length]

    @property
    def capacity(self) -> int:
        """Tokens for which there is room, those it holds included."""
        return len(self._keys)

    @property
    def bytes_reserved(self) -> int:
        """2 (K and V) x capacity x kv_heads x head_dim x 8 bytes, however few tokens it holds."""
        return self._keys.nbytes + self._values.nbytes

    def append(self, keys: np.ndarray, values: np.ndarray, work: Work | None = None) -> None:
        """Keep the keys and values (tokens, kv_heads, head_dim) of new tokens, and count that in `work`.

        Raises CacheFullError if they do not fit, AttentionError for those of another number of heads or width.
        """
        if keys.shape[1:] != self._keys.shape[1:]:
            raise AttentionError(
                f"The cache keeps {self._keys.shape[1:]} (KV heads, head_dim) a token and these are {keys.shape[1:]}; "
                "make it with the weights of this layer."
            )
        start, end = self.length, self.length + len(keys)
        if end > self.capacity:
            raise CacheFullError(
                f"The cache holds {start} of {self.capacity} tokens and {len(keys)} more do not fit; "
                f"reserve a capacity of {end} or more."
            )
        self._keys[start:end], self._values[start:end] = keys, values
        self.length = end
        if work:
            work.read += keys.nbytes + values.nbytes
            work.written += keys.nbytes + values.nbytes


def project(x: np.ndarray, weights: Weights, work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (tokens, hidden) -> queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, head_dim).

    Raises AttentionError for no token, or tokens of another width.
    """
    if x.ndim != 2 or x.shape[1] != weights.hidden:
        raise AttentionError(f"The tokens are an array {x.shape}; this layer takes (tokens, {weights.hidden}).")
    if not len(x):
        raise AttentionError("The prompt is empty; attention needs at least one token.")
    projected = [work.multiply(x, matrix) for matrix in (weights.query, weights.key, weights.value)]
    queries, keys, values = (array.reshape(len(x), -1, weights.head_dim) for array in projected)
    return queries, keys, values


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, work: Work) -> np.ndarray:
    """For each query the mean of the values before it, weighted by softmax(query . key / sqrt(head_dim)).

    queries (tokens, heads, head_dim) belong to the last tokens of keys and values (context, kv_heads, head_dim).
    Returns (tokens, heads, head_dim). Each key head is read once for all the query heads that share it.
    """
    (tokens, heads, width), (context, kv_heads, _) = queries.shape, keys.shape
    work.kv_read += keys.nbytes + values.nbytes
    grouped = queries.transpose(1, 0, 2).reshape(kv_heads, -1, width)  # (kv_heads, heads / kv_heads x tokens, head_dim)
    scores = work.multiply(grouped, keys.transpose(1, 2, 0)) / width**0.5  # (kv_heads, ..., context)
    position = np.arange(context - tokens, context)
    future = np.arange(context) > np.tile(position, heads // kv_heads)[:, None]
    scores = np.where(future, -np.inf, scores)
    mean = work.multiply(softmax(scores), values.transpose(1, 0, 2))  # (kv_heads, ..., head_dim)
    return mean.reshape(heads, tokens, width).transpose(1, 0, 2)


def softmax(scores: np.ndarray) -> np.ndarray:
    """exp(score) / sum over the last axis; the largest is taken off first, for exp of a large number overflows."""
    powers: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def step(x: np.ndarray, weights: Weights, cache: KVCache | None = None, work: Work | None = None) -> np.ndarray:
    """The layer for new tokens x (tokens, hidden) -> (tokens, hidden).

    With a cache, x is only what is not in it yet: the prompt (prefill), one token (decode), or a piece of a prompt
    (chunked prefill). Without one, x is everything so far, also in decode. `work` counts what is done.
    Raises AttentionError for no token or tokens of another width, CacheFullError when the cache has no room for them.
    """
    work = Work() if work is None else work
    queries, keys, values = project(x, weights, work)
    if cache is not None:
        cache.append(keys, values, work)
        keys, values = cache.keys, cache.values
    attended = attend(queries, keys, values, work)
    return work.multiply(attended.reshape(len(x), -1), weights.output)


@dataclass
class Decoded:
    """An answer: outputs (tokens, hidden), and for each of its tokens the work and the seconds it took."""

    outputs: np.ndarray
    work: list[Work] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> Work:
        """The work of all its tokens."""
        return sum(self.work, Work())


def decode(prompt: np.ndarray, tokens: int, weights: Weights, *, cached: bool = True) -> Decoded:
    """Read a prompt (prompt tokens, hidden) and write `tokens` more, each made from the last row before it.

    The first comes from prefill. A row scaled to length sqrt(hidden) is the next token's vector, in place of the rest of
    a model. Without the cache all rows are computed although the last would do: in a real model, the next layer's keys
    and values need them. Raises AttentionError for an empty prompt or one of another width.
    """
    positive(tokens=tokens)
    cache = KVCache(len(prompt) + tokens - 1, weights) if cached and len(prompt) else None
    answer, x = Decoded(np.empty((tokens, weights.hidden))), np.asarray(prompt, dtype=np.float64)
    for i in range(tokens):
        work, began = Work(), time.perf_counter()
        answer.outputs[i] = step(x, weights, cache, work)[-1]
        answer.seconds.append(time.perf_counter() - began)
        answer.work.append(work)
        new = answer.outputs[i] * (weights.hidden**0.5 / np.linalg.norm(answer.outputs[i]))
        x = new[None] if cached else np.vstack([x, new])
    return answer
