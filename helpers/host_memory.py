"""What host memory is worth beside a GPU: a server that sleeps, and a KV cache that holds more than the GPU does.

    python -m helpers.host_memory OUT.json [--model llama-3.1-8b] [--gpu 0]

Two servers on one GPU, one after the other measured; OUT.json is what helpers/data keeps for lesson 08. Models are shapes
of helpers/configs, served without weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI

from helpers import bench_machine, bench_server, metrics
from helpers.bench_matrix import Row
from helpers.bench_server import RowError, RowServer
from helpers.client import client_for, root_of
from helpers.hardware import GIB
from helpers.lever_lesson import complete, first_token, model_of, words

PROMPT, PROMPTS = 16_000, 6  # tokens, and how many prompts take turns
GPU_CACHE, HOST_CACHE = 8 * GIB, 40  # bytes on the GPU: fewer than the prompts need; GiB in host memory: more
READY = 400  # seconds


def rows(model: str, gpu: int) -> dict[str, Row]:
    """The two servers, on one GPU (its number). Their caches are of a set size, so that both fit."""
    common = ("--max-model-len", "17408", "--max-num-seqs", "16", "--kv-cache-memory-bytes")
    flags = {
        "sleep": (*common, str(40 * GIB), "--enable-sleep-mode"),
        "offload": (*common, str(GPU_CACHE), "--kv-offloading-size", str(HOST_CACHE)),
    }
    env = {"VLLM_SERVER_DEV_MODE": "1"}  # /sleep and /wake_up are served with it only
    return {name: Row(name, model, gpus=(gpu,), flags=words, env=env) for name, words in flags.items()}


def first_tokens(client: OpenAI, times: int = PROMPTS) -> dict[str, Any]:
    """Seconds to the first token of a prompt computed anew, copied back from host memory, and found on the GPU.

    `times` prompts are sent in turn, twice: together they are more than the GPU's cache holds, so that the second time
    each has left it. `tokens` are those found in host memory and on the GPU in the last two, of all prompts.
    """
    prompts, model = [words(PROMPT, seed) for seed in range(times)], model_of(client)
    first_token(client, model, prompts[0][:1000])  # what is compiled or loaded at the first request
    anew = [first_token(client, model, prompt) for prompt in prompts]
    time.sleep(2)  # blocks are copied to the host behind the answers
    before = _hits(client)
    host = [first_token(client, model, prompt) for prompt in prompts]
    between = _hits(client)
    gpu = [first_token(client, model, prompts[-1]) for _ in range(times)]
    after = _hits(client)
    seconds = {"computed": anew, "from host memory": host, "on the GPU": gpu}
    return {
        "prompt_tokens": PROMPT,
        "seconds": {name: round(statistics.median(each), 4) for name, each in seconds.items()},
        "all": {name: [round(one, 4) for one in each] for name, each in seconds.items()},
        "tokens": {"from host memory": between["external"] - before["external"], "on the GPU": after["gpu"] - between["gpu"]},
    }  # fmt: skip


def nap(client: OpenAI, gpu: int, times: int = 3) -> dict[str, Any]:
    """Put a server to sleep and wake it: seconds of both, MiB of the GPU in use, and whether it writes what it wrote before."""
    prompt, model = words(100, seed=0), model_of(client)
    before, awake = _write(client, model, prompt), gpu_memory(gpu)
    asleep, down, up = 0, [], []
    for _ in range(times):
        down.append(_post(client, "/sleep?level=1"))
        asleep = gpu_memory(gpu)
        up.append(_post(client, "/wake_up"))
    return {
        "awake_mib": awake, "asleep_mib": asleep, "sleep_s": round(statistics.median(down), 3),
        "wake_s": round(statistics.median(up), 3), "all": {"sleep": down, "wake": up},
        "same_text": _write(client, model, prompt) == before,
    }  # fmt: skip


def gpu_memory(gpu: int) -> int:
    """MiB in use on a GPU, by nvidia-smi. Raises OSError or CalledProcessError where that does not tell."""
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _write(client: OpenAI, model: str, prompt: list[int]) -> str:
    text: str = complete(client, model, prompt, 32, ignore_eos=True)["choices"][0]["text"]
    return text


def _post(client: OpenAI, path: str) -> float:
    began = time.perf_counter()
    client.post(root_of(client) + path, cast_to=str)
    return round(time.perf_counter() - began, 3)


def _hits(client: OpenAI) -> dict[str, int]:
    """Prompt tokens found so far, on the GPU and by a connector."""
    table = metrics.read(client)
    names = {"gpu": "prefix_cache_hits", "external": "external_prefix_cache_hits"}
    return {key: int(table.loc[table["metric"] == name, "value"].sum()) for key, name in names.items()}


def measure(model: str, gpu: int, logs: Path) -> dict[str, Any]:
    """Both servers, measured one after the other. Raises RowError where there is no such GPU, or one does not get ready."""
    here = bench_machine.facts()
    if gpu >= len(here["gpus"]):
        raise RowError(
            f"This machine has {len(here['gpus'])} GPUs, and number {gpu} was asked for; run it on a GPU node."
        )
    wanted, found = rows(model, gpu), {}
    with TemporaryDirectory(prefix="host-memory-") as scratch:
        servers = {name: bench_server.launch(row, logs / name, Path(scratch)) for name, row in wanted.items()}
        try:
            for name, server in servers.items():
                _wait(server)
                found[name] = {"ready_s": round(server.ready_after), "flags": list(server.row.flags)}
            found["offload"] |= first_tokens(client_for(servers["offload"].connection))
            bench_server.stop([servers.pop("offload")])
            found["sleep"] |= nap(client_for(servers["sleep"].connection), gpu)
        finally:
            bench_server.stop(list(servers.values()))
    machine = {name: value for name, value in here.items() if name not in ("topology", "settings")}
    return {"date": datetime.now(UTC).date().isoformat(), "model": model, "machine": machine, **found}


def _wait(server: RowServer) -> None:
    while not server.is_ready():
        if time.monotonic() - server.began > READY:
            raise server.not_ready(READY)
        time.sleep(0.2)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: measures and writes a JSON file. Exits with the reason when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m helpers.host_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--model", default="llama-3.1-8b", help="a shape of helpers/configs")
    parser.add_argument("--gpu", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        found = measure(options.model, options.gpu, options.out.parent / "logs" / "host-memory")
    except RowError as error:
        sys.exit(str(error))
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("offload", "sleep")}))


if __name__ == "__main__":
    main()
