"""What a serving engine does step by step: which requests run, which wait, who holds which block of the KV cache.

A simulator in which time is engine steps, deterministic, after vLLM 0.32 (v1/core/sched/scheduler.py, kv_cache_manager.py,
block_pool.py). One step:

1. Running requests, in the order they were admitted, get one token each, or the next piece of their prompt. One that
   needs a block where none is free takes it from the request admitted last, which loses all its blocks and goes back to
   the head of the queue (*preemption by recompute*).
2. If nobody was preempted, waiting requests are admitted first come, first served, while the token budget, the seats
   (`max_num_seqs`) and the free blocks last. One is admitted only if all the tokens it has so far fit; it takes blocks
   for the piece it computes now.
3. The model computes. Requests whose tokens are all computed get one more token; those that are done give their blocks
   back. So the last token of an answer never needs a slot.

Left out: stop tokens (the length of an answer is given), priorities, speculation, asynchronous scheduling (off on CPU),
sliding windows, several models' caches, connectors, and answers that happen to be equal: what a request writes is taken
to be its own, so only prompts are shared.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from helpers.errors import WorkshopError
from helpers.scheduler_steps import Engine
from helpers.trace import Settings, Told, Trace

POLICIES = ("continuous", "static")


class SimulationError(WorkshopError):
    """These requests or settings cannot be simulated, and would not work on a server either."""


@dataclass(frozen=True)
class Request:
    """`prompt`: how many tokens, or the token ids themselves, which requests can share; `output`: tokens to write."""

    id: str
    prompt: int | tuple[int, ...]
    output: int
    arrival: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt."""
        return self.prompt if isinstance(self.prompt, int) else len(self.prompt)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the KV cache when it is done: all but the last one, which nothing looks back at."""
        return self.prompt_tokens + self.output - 1


def simulate(
    requests: Sequence[Request],
    *,
    blocks: int,
    block_size: int = 16,
    max_num_batched_tokens: int = 2048,
    max_num_seqs: int = 128,
    policy: str = "continuous",
    chunked: bool = True,
    prefix_caching: bool = False,
) -> Trace:
    """Serve these requests and tell what happened in each step.

    `blocks` of `block_size` tokens are the KV cache; as in vLLM one of them is never used. The names of the settings are
    vLLM's, the defaults those of its CPU server. `policy="static"`: a batch of up to `max_num_seqs` requests is chosen
    when nothing runs, as many as fit at full length; nobody joins it, and a request that is done keeps its seat and its
    blocks until the last one is. `chunked=False`: a prompt is read in one step or waits.

    Raises SimulationError for what could never be served.
    """
    if policy not in POLICIES:
        raise SimulationError(f"There is no policy {policy!r}: choose continuous or static.")
    settings: Settings = {
        "memory": "paged", "blocks": blocks, "block_size": block_size, "max_num_batched_tokens": max_num_batched_tokens,
        "max_num_seqs": max_num_seqs, "policy": policy, "chunked": chunked, "prefix_caching": prefix_caching,
    }  # fmt: skip
    return _run(requests, settings)


def page(requests: Sequence[Request], *, blocks: int, block_size: int = 16, prefix_sharing: bool = False) -> Trace:
    """Memory alone: blocks are taken when they are needed, from anywhere; seats and token budget never end.

    `blocks` of `block_size` tokens. Raises SimulationError for what could never be served.
    """
    return _run(requests, _unlimited(requests, blocks, block_size) | {"prefix_caching": prefix_sharing})


def reserve(
    requests: Sequence[Request], *, blocks: int, block_size: int = 16, max_len: int | None = None
) -> Trace:  # fmt: skip
    """Memory alone: each request gets one contiguous piece for `max_len` tokens when it starts, whatever it will need.

    Without `max_len` the piece is as long as the request will be: what a server could do that knew this beforehand.
    Raises SimulationError for what could never be served.
    """
    return _run(requests, _unlimited(requests, blocks, block_size) | {"memory": "contiguous", "max_len": max_len})


def _unlimited(requests: Sequence[Request], blocks: int, block_size: int) -> Settings:
    _check_requests(requests)
    seats = len(requests)
    tokens = seats + sum(request.prompt_tokens + request.output for request in requests)
    return {
        "memory": "paged", "blocks": blocks, "block_size": block_size, "max_num_batched_tokens": tokens,
        "max_num_seqs": seats, "policy": "continuous", "chunked": True, "prefix_caching": False,
    }  # fmt: skip


def _run(requests: Sequence[Request], settings: Settings) -> Trace:
    _check_requests(requests)
    _check_settings(settings)
    _check_room(requests, settings)
    with _no_garbage():
        told: list[Told] = [
            {"id": r.id, "prompt": r.prompt_tokens, "output": r.output, "arrival": r.arrival} for r in requests
        ]
        return Trace(settings, told, Engine(requests, settings).run())


@contextmanager
def _no_garbage() -> Iterator[None]:
    """All that a simulation makes is kept: looking for garbage in it would take half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_requests(requests: Sequence[Request]) -> None:
    if not requests:
        raise SimulationError("There is no request to serve: give at least one.")
    seen = set()
    for request in requests:
        if request.id in seen:
            raise SimulationError(f"Two requests are called {request.id!r}: give each its own id.")
        seen.add(request.id)
        if not _is_count(request.prompt if isinstance(request.prompt, int) else len(request.prompt)):
            raise SimulationError(
                f"Request {request.id!r} has a prompt of {request.prompt_tokens} tokens: it needs one."
            )
        if not _is_count(request.output):
            raise SimulationError(
                f"Request {request.id!r} asks for {request.output!r} tokens: it must ask for one or more."
            )
        if not _is_count(request.arrival, 0):
            raise SimulationError(
                f"Request {request.id!r} arrives in step {request.arrival!r}: steps count 0, 1, 2, ..."
            )


def _check_settings(settings: Settings) -> None:
    for name, value in settings.items():
        if name in ("block_size", "max_num_batched_tokens", "max_num_seqs") and not _is_count(value):
            raise SimulationError(f"{name}={value!r} holds nothing: it must be a whole number from 1 on.")
    if not _is_count(settings["blocks"], 2):
        raise SimulationError(
            f"blocks={settings['blocks']!r} leaves no room for a token: one block is never used, so 2 at least."
        )
    if settings["max_num_batched_tokens"] < settings["max_num_seqs"]:
        raise SimulationError(
            "max_num_batched_tokens={max_num_batched_tokens} is less than max_num_seqs={max_num_seqs}, and every running "
            "request takes a token a step: raise the one or lower the other.".format(**settings)
        )


def _check_room(requests: Sequence[Request], settings: Settings) -> None:
    size, usable = settings["block_size"], settings["blocks"] - 1
    piece = settings.get("max_len")
    if piece is not None and not _is_count(piece):
        raise SimulationError(f"max_len={piece!r} holds nothing: it must be a whole number from 1 on.")
    for request in requests:
        if piece is not None and request.cached_tokens > piece:
            raise SimulationError(
                f"Request {request.id!r} needs {request.cached_tokens} tokens of cache and a piece has max_len={piece}."
            )
        tokens = piece or request.cached_tokens
        if -(-tokens // size) > usable:
            raise SimulationError(
                f"Request {request.id!r} needs {tokens} tokens of cache, which is {-(-tokens // size)} blocks of {size}, and "
                f"{usable} can be used: raise blocks to {-(-tokens // size) + 1} or more, or shorten it."
            )
        if not settings["chunked"] and request.cached_tokens > settings["max_num_batched_tokens"]:
            raise SimulationError(
                f"Request {request.id!r} may have to compute {request.cached_tokens} tokens in one step, and "
                f"max_num_batched_tokens={settings['max_num_batched_tokens']}: raise it, or set chunked=True."
            )
