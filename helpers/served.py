"""The server at hand: what its log says of its memory, next to what the arithmetic predicts from its config.json."""

import re
from pathlib import Path

import pandas as pd
from openai import OpenAI

from helpers import connections
from helpers.client import connect
from helpers.errors import WorkshopError
from helpers.hardware import GIB
from helpers.kv_cache import kv_bytes_per_token, kv_cache_tokens
from helpers.models import ModelConfig, load
from helpers.server_log import ServerLog, read_log

CPU_BLOCK, GPU_BLOCK = 128, 16
PREFIX = re.compile(r"^.*?\[[\w.]+:\d+\] ")


class OutOfReachError(WorkshopError):
    """A server whose log or config.json cannot be read from here."""


def printed() -> None:
    """Print what the server at hand wrote to its log about its cache, or why that cannot be read."""
    try:
        text = _log_text(connect(quiet=True))
        lines = [line for line in text.splitlines() if "KV cache size" in line or "Maximum concurrency" in line]
        print("\n".join(PREFIX.sub("", line) for line in lines) or "The log has no line about a KV cache.")
    except WorkshopError as error:
        print(f"No log to read here: {error}")


def comparison() -> pd.DataFrame | None:
    """Predicted and printed KV cache of the server at hand; None, after saying why, when it cannot be compared.

    The prediction takes from the log only the memory set aside for the cache and the layout. With pipeline stages the
    log gives the first stage's memory, and the figures may differ by half a percent.
    """
    try:
        config, log = _at_hand()
        tokens = predicted_tokens(config, log)
    except WorkshopError as error:
        print(f"No comparison here: {error}")
        return None
    width = kv_bytes_per_token(config, tp=log.tp, pp=log.pp, dtype=log.kv_cache_dtype)
    rows = {
        "memory for the cache, GiB": ("", f"{min(log.available_kv_gib):.2f}"),
        "bytes per token": (f"{width:,}", ""),
        "KV cache size, tokens": (f"{tokens:,}", f"{log.kv_cache_tokens:,}"),
    }
    if log.max_model_len:
        name = f"requests of {log.max_model_len:,} tokens at once"
        rows[name] = (f"{tokens / log.max_model_len:.2f}", f"{log.max_concurrency:.2f}")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["predicted", "printed by the server"])


def predicted_tokens(config: ModelConfig, log: ServerLog) -> int:
    """Tokens of cache by the config.json, for the memory and layout the log names. Raises OutOfReachError if it cannot say."""
    if log.kv_cache_tokens is None or not log.available_kv_gib:
        raise OutOfReachError("its log does not say how much memory the cache has.")
    if config.sliding_window:
        raise OutOfReachError(
            "the model has a sliding window, where the figure depends on settings the log leaves out."
        )
    block_size = CPU_BLOCK if log.device == "CPU" else GPU_BLOCK
    return kv_cache_tokens(
        config, min(log.available_kv_gib) * GIB, tp=log.tp, pp=log.pp, dtype=log.kv_cache_dtype, block_size=block_size,
        max_model_len=log.max_model_len,
    )  # fmt: skip


def _at_hand() -> tuple[ModelConfig, ServerLog]:
    client = connect(quiet=True)
    served = client.models.list().data[0]
    return load(getattr(served, "root", None) or served.id), read_log(_log_text(client))


def _log_text(client: OpenAI) -> str:
    """The log of the server that the client talks to, by way of its connection file."""
    url = str(client.base_url).rstrip("/")
    connection = next((c for c in connections.read_all() if c.base_url.rstrip("/") == url), None)
    if connection is None:
        raise OutOfReachError(f"the server at {url} has no connection file here that would name its log.")
    if not connection.log:
        raise OutOfReachError("the server is the class's, and its log the instructor's.")
    try:
        return Path(connection.log).read_text(errors="replace")
    except OSError as error:
        place = f"on {connection.node or 'another machine'}"
        raise OutOfReachError(f"the server's log is {place} and not readable from here ({error.strerror}).") from None
