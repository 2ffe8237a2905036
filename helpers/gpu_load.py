"""What the GPUs of this machine do, through NVML (the nvidia-ml-py package, which vLLM for GPUs brings along)."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from urllib.parse import urlsplit

import psutil

from helpers.hardware import GIB


@dataclass(frozen=True)
class GpuLoad:
    """One GPU: the share (0-1) of the last moment in which it ran a kernel, and memory in GiB.

    A GPU that runs one small kernel after another is at 1.0 as well: it says busy, not well used.
    """

    index: int
    name: str
    utilisation: float
    used_gib: float
    total_gib: float


def read() -> list[GpuLoad]:
    """The GPUs that programs started here would see; an empty list without nvidia-ml-py, a driver or a GPU."""
    nvml = _nvml()
    if nvml is None:
        return []
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # one that is hidden from this job, or cut into MIG slices, tells nothing
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_visible(index, _text(nvml.nvmlDeviceGetUUID(handle))):
                found.append(_load(nvml, index, handle))
    return found


def is_here(base_url: str) -> bool:
    """Whether a server's address is of this machine; the GPUs of another one are not in sight."""
    return _is_own(urlsplit(base_url).hostname or "")


@lru_cache(maxsize=64)
def _is_own(host: str) -> bool:
    own = {address.address.split("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        return any(entry[4][0] in own | {"127.0.0.1", "::1"} for entry in socket.getaddrinfo(host, None))
    except OSError:
        return False


@lru_cache(maxsize=1)
def _nvml() -> ModuleType | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no GPU: each with an error of its own
        return None
    nvml: ModuleType = pynvml
    return nvml


def _load(nvml: ModuleType, index: int, handle: object) -> GpuLoad:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuLoad(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        utilisation=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        used_gib=memory.used / GIB,
        total_gib=memory.total / GIB,
    )


def _is_visible(index: int, uuid: str) -> bool:
    """By CUDA_VISIBLE_DEVICES, which lists numbers or the beginnings of UUIDs; unset, all are."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return True
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return any(name == str(index) or (name.startswith("GPU-") and uuid.startswith(name)) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
