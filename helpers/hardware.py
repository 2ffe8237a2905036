"""GPUs and the links between them: what they hold, how fast they read, compute and talk, and who says so."""

from dataclasses import dataclass

from helpers.errors import WorkshopError

GB, GIB, TB = 10**9, 2**30, 10**12


class HardwareError(WorkshopError):
    """A GPU or link that the tables do not hold."""


@dataclass(frozen=True)
class Link:
    """A connection and its bytes a second in one direction."""

    name: str
    bytes_per_second: float
    source: str


@dataclass(frozen=True)
class GPU:
    """One GPU. Memory is what CUDA reports to a program, a little less than the label's `label_gb`.

    `bandwidth` is bytes a second from its memory; `bf16_flops` and `fp8_flops` are dense peaks, None where absent.
    """

    name: str
    label_gb: int
    memory_bytes: int
    bandwidth: float
    bf16_flops: float
    fp8_flops: float | None
    link: Link
    source: str
    memory_source: str

    def flops(self, weight_bits: int) -> float:
        """Peak FLOP/s for weights of so many bits: the FP8 peak for 8 bits where there is one, else the BF16 peak."""
        return self.fp8_flops if weight_bits == 8 and self.fp8_flops else self.bf16_flops


NVLINK3 = Link("NVLink 3", 300 * GB, "NVIDIA A100 datasheet: 600 GB/s in both directions together")
NVLINK4 = Link("NVLink 4", 450 * GB, "NVIDIA H100 datasheet: 900 GB/s in both directions together, 18 links of 25 GB/s")
NVLINK5 = Link("NVLink 5", 900 * GB, "NVIDIA Blackwell datasheet: 1.8 TB/s in both directions together")
NVLINK_PAIR = Link("NVLink bridge", 56 * GB, "NVIDIA RTX A6000 datasheet: 112.5 GB/s in both directions, in a pair")
PCIE4 = Link("PCIe 4 x16", 32 * GB, "PCI Express 4.0: 16 GT/s a lane, 16 lanes, each way")
INFINIBAND_NDR = Link("InfiniBand NDR", 50 * GB, "InfiniBand NDR: 400 Gb/s a port, each way")
LINKS = {link.name: link for link in (NVLINK3, NVLINK4, NVLINK5, NVLINK_PAIR, PCIE4, INFINIBAND_NDR)}

_OOM = "total capacity in CUDA out-of-memory messages in public reports"

GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100-40", 40, int(39.39 * GIB), 1.555 * TB, 312e12, None, NVLINK3, "NVIDIA A100 SXM4 40 GB datasheet",
            f"{_OOM}: 39.38 to 39.56 GiB"),
        GPU("A100-80", 80, int(79.25 * GIB), 2.039 * TB, 312e12, None, NVLINK3, "NVIDIA A100 SXM4 80 GB datasheet",
            f"{_OOM}: 79.15 to 79.33 GiB"),
        GPU("H100", 80, int(79.19 * GIB), 3.35 * TB, 989e12, 1979e12, NVLINK4, "NVIDIA H100 SXM datasheet",
            f"vLLM 0.10.2 server log, and {_OOM}: 79.10 to 79.21 GiB"),
        GPU("H200", 141, int(139.80 * GIB), 4.8 * TB, 989e12, 1979e12, NVLINK4, "NVIDIA H200 SXM datasheet",
            f"{_OOM}: 139.72 to 139.83 GiB; nvidia-smi says 143,771 MiB"),
        GPU("B200", 180, int(178.35 * GIB), 8.0 * TB, 2250e12, 4500e12, NVLINK5, "NVIDIA DGX B200 datasheet",
            f"{_OOM}: 178.35 GiB"),
        GPU("L40S", 48, int(44.42 * GIB), 0.864 * TB, 362e12, 733e12, PCIE4, "NVIDIA L40S datasheet",
            "vLLM 0.7 server log: total_gpu_memory 44.42 GiB"),
        GPU("A6000", 48, int(47.40 * GIB), 0.768 * TB, 155e12, None, NVLINK_PAIR, "NVIDIA RTX A6000 datasheet",
            f"{_OOM}: 47.27 to 47.54 GiB"),
    )
}  # fmt: skip

_ALIASES = {
    "A100": "A100-80", "A10080GB": "A100-80", "A100SXM480GB": "A100-80",
    "A10040GB": "A100-40", "A100SXM440GB": "A100-40",
    "H10080GB": "H100", "H100SXM": "H100", "H10080GBHBM3": "H100", "H200SXM": "H200", "H200141GB": "H200",
    "RTXA6000": "A6000",
}  # fmt: skip


def get_gpu(gpu: "str | GPU") -> GPU:
    """The GPU of a name such as "H100", "a100-40" or "NVIDIA H200". Raises HardwareError listing the ones known."""
    if isinstance(gpu, GPU):
        return gpu
    names = {_letters(name): name for name in GPUS} | _ALIASES
    key = _letters(str(gpu)).removeprefix("NVIDIA")
    if key not in names:
        raise HardwareError(f"Unknown GPU {gpu!r}: the tables hold {', '.join(GPUS)}.")
    return GPUS[names[key]]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.upper() if letter.isalnum())
