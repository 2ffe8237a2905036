"""What the GPUs of a job do at this moment, on every node of it: nvidia-smi through `srun --overlap`."""

import csv
from typing import Any

from helpers import queue
from helpers.jobs import Job
from helpers.queue import SlurmError

COLUMNS = ("index", "name", "memory.used", "memory.total", "utilization.gpu", "power.draw")
SMALLEST = 0.05  # GiB: below are shells and the like
#: Runs on each node. Without GPUs (the test cluster) it tells of the job's processes instead, this step's own left out.
SCRIPT = f"""
node=$SLURMD_NODENAME
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    nvidia-smi --query-gpu={",".join(COLUMNS)} --format=csv,noheader,nounits | sed "s/^/gpu, $node, /"
else
    pids=$(scontrol listpids "$SLURM_JOB_ID" "$node" | awk -v own="$SLURM_STEP_ID" 'NR > 1 && $3 != own {{print $1}}' | paste -sd,)
    [ -z "$pids" ] || ps -o pid=,pcpu=,rss=,args= -p "$pids" | sed "s/^/process, $node, /"
fi
"""


def top(job: Job, patience: float = 30) -> list[dict[str, Any]]:
    """A dictionary for each GPU (or process) of the job: memory in GiB, utilisation in per cent, power in watts.

    Raises SlurmError when the job does not run.
    """
    found = queue.record(job.id)
    if found is None or found.state != "RUNNING":
        raise SlurmError(
            f"{job} is not running, so no GPU is at work: `python -m helpers.slurm status {job.id}` tells more."
        )
    nodes = queue.details(job.id).get("NumNodes", "1")  # srun takes one node unless told
    command = ["srun", "--overlap", f"--jobid={found.raw_id}", f"--nodes={nodes}", f"--ntasks={nodes}"]
    command += ["--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0"]
    return parse(queue.ask([*command, "bash", "-c", SCRIPT], patience=patience))


def parse(text: str) -> list[dict[str, Any]]:
    """The script's lines, by node."""
    rows = []
    for fields in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(fields) == 2 + len(COLUMNS) and fields[0] == "gpu":
            rows.append(_gpu(fields[1], fields[2:]))
        elif len(fields) >= 3 and fields[0] == "process":
            rows.append(_process(fields[1], ", ".join(fields[2:])))
    rows = [row for row in rows if row.get("rss_gib", SMALLEST) >= SMALLEST]
    return sorted(rows, key=lambda row: (row["node"], row.get("gpu", 0)))


def _gpu(node: str, values: list[str]) -> dict[str, Any]:
    index, name, used, total, utilisation, power = values
    return {
        "node": node, "gpu": int(index), "name": name, "used_gib": _number(used, 1024), "total_gib": _number(total, 1024),
        "utilisation_percent": _number(utilisation), "power_w": _number(power),
    }  # fmt: skip


def _process(node: str, line: str) -> dict[str, Any]:
    pid, cpu, rss, command = line.split(None, 3)
    return {"node": node, "pid": int(pid), "cpu_percent": float(cpu), "rss_gib": int(rss) / 2**20, "command": command}


def _number(text: str, unit: float = 1) -> float | None:
    """None for what the card does not tell: [N/A]."""
    try:
        return float(text) / unit
    except ValueError:
        return None
