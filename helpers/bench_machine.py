"""What a measurement was made on: GPUs and how they are linked, processor, versions. Two that differ are never mixed."""

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers.errors import WorkshopError
from helpers.hardware import GPU, HardwareError, get_gpu

#: What nvidia-smi is asked, and the names the answers get.
ASKED = {"name": "name", "memory.total": "memory_mib", "driver_version": "driver", "uuid": "uuid"}
PACKAGES = ("vllm", "torch", "transformers", "triton")
#: Variables that change how fast a server is, kept where they are set; not those that hold a path, an address or a key.
SETTINGS = re.compile(r"(VLLM|NCCL|TORCH|OMP|NVSHMEM)_(?!.*(KEY|TOKEN|URL|HOST|IFNAME|PORT|LOGGING))")


class MachineError(WorkshopError):
    """A machine that cannot be measured on."""


@cache
def facts(with_vllm: bool = True) -> dict[str, Any]:
    """This machine: id, name, gpus, driver, topology (as `nvidia-smi topo -m` draws it), processor, versions, settings.

    `id` is a hash of all that makes a difference, with the host's name and the GPUs' serial numbers among it: they
    identify the machine and are not kept. Raises MachineError where there is no vLLM, unless it is not asked for.
    """
    gpus, versions = _gpus(), _versions(with_vllm)
    names, cores = [gpu["name"] for gpu in gpus], len(os.sched_getaffinity(0))
    shown = {
        "gpus": names,
        "gpu_memory_mib": [int(gpu["memory_mib"]) for gpu in gpus],
        "driver": gpus[0]["driver"] if gpus else None,
        "topology": _topology() if gpus else None,
        "processor": _processor(),
        "cores": cores,
        "versions": versions,
        "settings": {name: value for name, value in sorted(os.environ.items()) if _counts(name, value)},
    }
    hidden = [socket.gethostname(), *(gpu["uuid"] for gpu in gpus)]
    mark = hashlib.sha256(json.dumps([shown, hidden], sort_keys=True).encode()).hexdigest()[:8]
    return {"id": mark, "name": _name(names, cores), **shown}


def gpu_of(machine: dict[str, Any]) -> GPU | None:
    """The GPU that helpers.hardware knows for a machine's facts; None on a CPU, and for a GPU it does not know."""
    try:
        return get_gpu(machine["gpus"][0]) if machine["gpus"] else None
    except HardwareError:
        return None


def _counts(name: str, value: str) -> bool:
    return SETTINGS.match(name) is not None and "/" not in value


def _name(gpus: list[str], cores: int) -> str:
    return f"{len(gpus)}x-{gpus[0].replace(' ', '-')}" if gpus else f"cpu-{cores}-cores"


def _gpus() -> list[dict[str, str]]:
    said = _said("nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits")
    lines = [[word.strip() for word in line.split(",")] for line in said.splitlines()]
    found = [dict(zip(ASKED.values(), words, strict=True)) for words in lines if len(words) == len(ASKED)]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return found
    visible = [name.strip() for name in listed.split(",") if name.strip()]
    numbered = {str(number): gpu for number, gpu in enumerate(found)} | {gpu["uuid"]: gpu for gpu in found}
    return [numbered[name] for name in visible if name in numbered]


def _topology() -> str:
    """The table of links, without the signs that underline its head in a terminal."""
    return re.sub(r"\x1b\[\d*m", "", _said("nvidia-smi", "topo", "-m"))


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions(with_vllm: bool) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package == "vllm" and with_vllm:
                raise MachineError(
                    "No vLLM is installed in this Python: run make setup, and use .venv/bin/python."
                ) from None
    return found
