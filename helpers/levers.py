"""The levers of lesson 08: what each one fixes, what it costs, how vLLM calls it, and whether the server at hand has it.

Nothing here knows by itself which server has what: `attempt` starts one with the lever and reports what it said.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.server import Server, ServerError, start
from helpers.tiny import MODEL_DIR

PREFILL, DECODE, BETWEEN, MEMORY, OPERATION = "prefill", "decode", "prefill beside decode", "memory", "operation"


@dataclass(frozen=True)
class Lever:
    """`fixes` is the bottleneck: prefill, decode, the one in the way of the other, memory (room), or operation; `flags` is an example that vLLM takes.

    `needs` is what a server must have for it, as the pinned vLLM's source or its own words say; empty for any.
    """

    name: str
    fixes: str
    gain: str
    cost: str
    flags: tuple[str, ...] = ()
    needs: str = ""

    @property
    def switch(self) -> str:
        """Its flags as one types them."""
        return " ".join(self.flags) or "on by default"


LEVERS = (
    Lever("prefix caching", PREFILL, "what several prompts begin with is computed once", "cache that others could use"),
    Lever(
        "token budget", BETWEEN, "a long prompt does not stop those who are writing", "its own first token comes later",
        ("--max-num-batched-tokens", "512"),
    ),
    Lever(
        "FP8 KV cache", MEMORY, "twice the tokens in the cache, half the bytes to read for them", "keys and values rounded",
        ("--kv-cache-dtype", "fp8"), "on a CPU AVX-512",
    ),
    Lever(
        "quantised weights", DECODE, "fewer bytes to read a step, more room for the cache", "weights rounded",
        ("--quantization", "fp8"), "a kernel for the format",
    ),
    Lever(
        "n-gram speculation", DECODE, "several tokens a step where text repeats itself", "guesses that fail are work for nothing",
        ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'),
    ),
    Lever(
        "draft model", DECODE, "several tokens a step on any text", "a second model's time and memory",
        ("--speculative-config", '{"method": "draft_model", "model": "SMALLER", "num_speculative_tokens": 4}'),
        "a smaller model with the same vocabulary",
    ),
    Lever(
        "weights in host memory", MEMORY, "a model larger than the GPU", "every step waits for the bus",
        ("--cpu-offload-gb", "10"), "a GPU",
    ),
    Lever(
        "KV cache in host memory", PREFILL, "prefixes that the GPU had to give up are copied back, not computed", "copies over the bus",
        ("--kv-offloading-size", "64"), "a GPU",
    ),
    Lever(
        "sleep mode", OPERATION, "a GPU freed for other work, and back in seconds", "no answers meanwhile",
        ("--enable-sleep-mode",), "a GPU",
    ),
    Lever(
        "disaggregated prefill", BETWEEN, "prompts are read by one server while another writes", "two servers, and the cache moved between them",
        ("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'), "a KV connector",
    ),
    Lever(
        "tensor parallelism", DECODE, "each GPU reads a share of the weights", "an exchange after every half layer",
        ("--tensor-parallel-size", "2"), "several GPUs with fast links",
    ),
    Lever(
        "data parallelism", MEMORY, "copies that share the requests", "weights on every GPU, one request no faster",
        ("--data-parallel-size", "2"), "several GPUs",
    ),
    Lever(
        "expert parallelism", DECODE, "whole experts on a GPU", "an exchange of tokens, uneven load",
        ("--enable-expert-parallel",), "a mixture of experts",
    ),
    Lever(
        "context parallelism", MEMORY, "one request's cache over several GPUs", "an exchange in every attention",
        ("--decode-context-parallel-size", "2"), "several GPUs",
    ),
    Lever(
        "compiled steps and CUDA graphs", DECODE, "no time between kernels", "a longer start, some memory", (), "a GPU for the graphs",
    ),
    Lever(
        "compiled for one token", DECODE, "one client alone", "a still longer start",
        ("--compilation-config", '{"compile_sizes": [1]}'), "a GPU",
    ),
    Lever("structured output", OPERATION, "answers that a program can read", "a mask over the vocabulary for every token"),
    Lever(
        "LoRA adapters", OPERATION, "many fine-tunings beside one set of weights", "a little more work for each token",
        ("--enable-lora", "--max-lora-rank", "16"),
    ),
)  # fmt: skip


def table(levers: Sequence[Lever] = LEVERS) -> pd.DataFrame:
    """A row for each lever: what it fixes, what it gains and costs, and vLLM's switch."""
    rows = {one.name: {"fixes": one.fixes, "gain": one.gain, "cost": one.cost, "switch": one.switch} for one in levers}
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class Refusal:
    """A lever that a server does not have, in the words of its own log."""

    lever: str
    words: str
    needs: str = ""

    def __repr__(self) -> str:
        needs = f" It needs {self.needs}." if self.needs else ""
        return f"{self.lever}: not on this server. vLLM says: {self.words}.{needs}"


def find(name: str) -> Lever:
    """The lever of this name. Raises KeyError, which lists the names."""
    by_name = {one.name: one for one in LEVERS}
    if name not in by_name:
        raise KeyError(f"There is no lever {name!r}; there are {', '.join(by_name)}.")
    return by_name[name]


def attempt(name: str, flags: Sequence[str] | None = None, **options: Any) -> Server | Refusal:
    """Start a private server with the lever: the server, or a Refusal with what vLLM said against it.

    `flags` stand in for the lever's own; `options` go to helpers.server.start. Raises KeyError for an unknown lever.
    """
    lever = find(name)
    try:
        return start(flags=list(lever.flags if flags is None else flags), private=True, quiet=True, **options)
    except ServerError as error:
        return Refusal(name, _said(str(error)), lever.needs)


def attempts(*names: str) -> list[Server | Refusal]:
    """`attempt` for each of these levers, side by side."""
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(attempt, names))


def start_all(**wanted: tuple[Path | str, Sequence[str]]) -> dict[str, Server]:
    """Private servers started side by side, {name: (model folder, flags)}; all or, when one fails, none.

    Raises ServerError. They end with this process, or with `stop`.
    """
    with ThreadPoolExecutor(len(wanted)) as pool:
        starting = {
            name: pool.submit(start, model, flags=list(flags), private=True, quiet=True)
            for name, (model, flags) in wanted.items()
        }
        try:
            return {name: one.result() for name, one in starting.items()}
        except BaseException:  # Ctrl-C as well: what has been started must not stay
            for one in starting.values():
                with suppress(ServerError):
                    one.result().stop()
            raise


def stop(servers: dict[str, Server]) -> None:
    """End these servers, side by side."""
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(Server.stop, servers.values()))


@contextmanager
def servers(**wanted: tuple[Path | str, Sequence[str]]) -> Iterator[dict[str, Server]]:
    """`start_all` for the length of a block."""
    running = start_all(**wanted)
    try:
        yield running
    finally:
        stop(running)


def draft(guesses: int, model: Path | str = MODEL_DIR) -> str:
    """The value of --speculative-config with which `model` guesses so many tokens; by default the small Llama, for itself."""
    return json.dumps({"method": "draft_model", "model": str(model), "num_speculative_tokens": guesses})


def connector(folder: Path | str) -> list[str]:
    """Flags of a server that keeps what it has read in this folder, and finds there what another has read.

    vLLM's example of a KV connector: it writes files. NixlConnector and others move blocks from GPU to GPU.
    """
    settings = {
        "kv_connector": "ExampleConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }  # fmt: skip
    return ["--kv-transfer-config", json.dumps(settings), "--no-enable-prefix-caching"]


def small(*flags: str) -> tuple[Path, Sequence[str]]:
    """The small Llama with these flags, for `servers`."""
    return MODEL_DIR, flags


def _said(error: str) -> str:
    """vLLM's own words out of a ServerError, without what helpers.doctor says around them."""
    words = re.sub(r"\s*Log: \S+$", "", error.removeprefix("The server stopped: "))
    words = re.sub(
        r"^vLLM (said|refuses these settings): |^\w*(Error|Exception): | Change the flag that it names\.$", "", words
    )
    words = re.sub(r"^\w*(Error|Exception): ", "", words)
    return re.sub(r"\s+", " ", words).strip().rstrip(".")
