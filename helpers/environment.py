"""What this machine has and lacks, before a lesson needs it:  python -m helpers.environment"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers import connections, queue
from helpers.hardware import GIB

OK, NOTE, PROBLEM = "ok", "note", "problem"
MARKS = {OK: "✓", NOTE: "·", PROBLEM: "✗"}


@dataclass
class Finding:
    """One line of the report: what was looked at, its state (ok, note or problem), what was found, and the mend."""

    what: str
    state: str
    found: str
    mend: str = ""


def python() -> Finding:
    """A version that vLLM's packages are built for: 3.11 to 3.13."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding(
            "Python", PROBLEM, version, "make a new .venv with Python 3.11 to 3.13: make setup PYTHON=python3.12"
        )
    return Finding("Python", OK, version)


def vllm() -> Finding:
    """vLLM in this Python; it is not imported."""
    try:
        return Finding("vLLM", OK, importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("vLLM", PROBLEM, "not installed", "run `make setup` and choose the kernel of .venv")


def processor(cpuinfo: str = "/proc/cpuinfo") -> Finding:
    """Cores, and the AVX2 that vLLM's build for CPUs needs."""
    text = Path(cpuinfo).read_text() if Path(cpuinfo).exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    found = f"{os.cpu_count()} cores, {name.group(1) if name else 'unknown'}"
    if "avx2" not in text:
        return Finding(
            "processor", PROBLEM, f"{found}, no AVX2", "vLLM on a CPU needs AVX2: use another machine, or a GPU"
        )
    return Finding("processor", OK, found)


def memory(needed_gib: float = 5) -> Finding:
    """Free memory, against what a server of the small Llama takes, in GiB."""
    free = psutil.virtual_memory().available / GIB
    if free < needed_gib:
        return Finding(
            "memory", PROBLEM, f"{free:.1f} GiB free", f"a local server needs {needed_gib:g}: close other programs"
        )
    return Finding("memory", OK, f"{free:.0f} GiB free")


def disk(needed_gib: float = 1) -> Finding:
    """Room where logs and connection files go, in GiB."""
    folder = next(p for p in [connections.home(), *connections.home().parents] if p.exists())
    free = shutil.disk_usage(folder).free / GIB
    if free < needed_gib:
        return Finding(
            "disk",
            PROBLEM,
            f"{free:.2f} GiB free in {folder}",
            "free some space, or set WORKSHOP_HOME to another folder",
        )
    return Finding("disk", OK, f"{free:.0f} GiB free")


def gpus() -> Finding:
    """What nvidia-smi lists; no GPU is no problem."""
    if not shutil.which("nvidia-smi"):
        return Finding("GPU", NOTE, "none here", "the lessons run on the CPU; a cluster has the GPUs")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        return Finding("GPU", PROBLEM, "nvidia-smi fails", "ask the machine's keeper about the NVIDIA driver")
    return Finding("GPU", OK, "; ".join(done.stdout.strip().splitlines()))


def slurm() -> Finding:
    """The partitions, where Slurm is here and answers."""
    if not shutil.which("sbatch"):
        return Finding("Slurm", NOTE, "no sbatch here", "log in to a cluster to deploy on its GPUs")
    try:
        names = queue.partitions()
    except queue.SlurmError as error:
        said, _, mend = str(error).partition(": ")
        return Finding("Slurm", NOTE, said, mend.rstrip("."))
    return Finding("Slurm", OK, f"partitions {', '.join(names)}")


def server() -> Finding:
    """A server that a notebook would find; none is no problem."""
    live = [c for c in connections.read_all() if not c.is_gone()]
    if url := os.environ.get("VLLM_BASE_URL"):
        return Finding("server", OK, f"{url} (VLLM_BASE_URL)")
    if live:
        return Finding("server", OK, f"{live[0].model} at {live[0].base_url}, {live[0].state}")
    return Finding("server", NOTE, "none running", "lesson 00 starts one")


def report() -> list[Finding]:
    """All of them, in the order in which they are shown."""
    return [python(), vllm(), processor(), memory(), disk(), gpus(), slurm(), server()]


def show() -> bool:
    """Print the report; True when nothing is in the way of a lesson."""
    findings = report()
    for finding in findings:
        mend = f" -> {finding.mend}" if finding.mend else ""
        print(f"{MARKS[finding.state]} {finding.what:<10} {finding.found}{mend}")
    return all(finding.state != PROBLEM for finding in findings)


if __name__ == "__main__":
    sys.exit(0 if show() else 1)
