"""Can a partition run this job? Its nodes, their GPUs and its limits, against what a deployment asks of Slurm."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from helpers import queue
from helpers.deployments import Deployment, asked_of_sbatch
from helpers.environment import NOTE, OK, PROBLEM, Finding
from helpers.hardware import HardwareError, get_gpu

USABLE = {"idle", "mixed", "allocated", "completing", "planned", "reserved"}
UNLIMITED = ("UNLIMITED", "INFINITE", "")
_NODES = "%N|%T|%G|%c|%m|%f|%E"
_KIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Node:
    """A node as sinfo shows it; memory in MiB, `reason` why it is out (empty when it is not)."""

    name: str
    state: str
    gpus: int
    kinds: tuple[str, ...]
    cpus: int
    memory: int
    features: frozenset[str]
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it runs jobs, now or after those that hold it. A state with a * is of a node that does not answer."""
        return self.state.rstrip("~#!%$@^-+") in USABLE


@dataclass(frozen=True)
class Partition:
    """A partition and its limits; `max_seconds` and `max_nodes` are None where there is none."""

    name: str
    is_up: bool
    is_default: bool
    max_seconds: int | None
    max_nodes: int | None
    accounts: frozenset[str]
    nodes: list[Node] = field(default_factory=list)


def check(deployment: Deployment, options: Sequence[str] = ()) -> list[Finding]:
    """What of this cluster stands against the job that sbatch would make of the options and the deployment's file.

    Where nothing does, `sbatch --test-only` has the last word. Raises SlurmError when Slurm is not here or does not answer.
    """
    asked = asked_of_sbatch(deployment.path) | asked_of_sbatch(options)
    partitions = parse_partitions(queue.ask(["scontrol", "--oneliner", "show", "partition"]))
    names = (
        asked["--partition"].split(",")
        if asked.get("--partition")
        else [p for p in partitions if partitions[p].is_default]
    )
    if not names:
        return [Finding("partition", PROBLEM, "none is named and this cluster has no default", _choose(partitions))]
    if unknown := [name for name in names if name not in partitions]:
        return [Finding("partition", PROBLEM, f"this cluster has no {unknown[0]!r}", _choose(partitions))]
    tried = [assess(deployment, with_nodes(partitions[name]), asked) for name in names]
    return min(tried, key=lambda findings: sum(finding.state == PROBLEM for finding in findings))


def with_nodes(partition: Partition) -> Partition:
    """The partition with its nodes, as sinfo lists them. Raises SlurmError when it does not answer."""
    text = queue.ask(["sinfo", "--noheader", "--Node", f"--partition={partition.name}", f"--format={_NODES}"])
    return replace(partition, nodes=parse_nodes(text))


def assess(deployment: Deployment, partition: Partition, asked: Mapping[str, str]) -> list[Finding]:
    """The findings for one partition, problems first; a single OK when all is well."""
    found = [
        *_limits(deployment, partition, asked),
        *_nodes(deployment, partition, asked),
        *_kinds(deployment, partition),
    ]
    if any(finding.state == PROBLEM for finding in found):
        return found
    usable = sum(node.is_usable for node in partition.nodes)
    return [*found, Finding("partition", OK, f"{partition.name}: {usable} of {len(partition.nodes)} nodes take jobs")]


def test_only(deployment: Deployment, options: Sequence[str], variables: Mapping[str, str]) -> list[Finding]:
    """What Slurm itself says of the submission, with the site's own rules; nothing is submitted.

    No findings when it would take the job. Raises SlurmError when Slurm is not here or does not answer.
    """
    environment = queue.clean_environment() | dict(variables)
    done = queue.run(["sbatch", "--test-only", *options, str(deployment.path)], environment=environment)
    if done.returncode == 0:
        return []
    said = " ".join(done.stderr.replace("sbatch: error: ", "").replace("allocation failure: ", "").split())
    mend = next((mend for words, mend in queue.REFUSALS.items() if words.lower() in said.lower()), "")
    return [Finding("Slurm", PROBLEM, f"sbatch would refuse: {said.rstrip('.')}", mend or "ask your cluster's support")]


def parse_partitions(text: str) -> dict[str, Partition]:
    """The partitions of `scontrol --oneliner show partition`, without their nodes."""
    found = {}
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in values:
            continue
        accounts = values.get("AllowAccounts", "ALL")
        found[values["PartitionName"]] = Partition(
            name=values["PartitionName"],
            is_up=values.get("State") == "UP",
            is_default=values.get("Default") == "YES",
            max_seconds=seconds(values.get("MaxTime", "")),
            max_nodes=int(values["MaxNodes"]) if values.get("MaxNodes", "").isdecimal() else None,
            accounts=frozenset() if accounts == "ALL" else frozenset(accounts.split(",")),
        )
    return found


def parse_nodes(text: str) -> list[Node]:
    """The nodes of `sinfo --Node`, in the format of _NODES."""
    found = []
    for line in text.splitlines():
        name, state, gres, cpus, memory, features, reason = line.split("|", 6)
        gpus = re.findall(r"(?:^|,)gpu(?::([^:,(]+))?(?::(\d+))?(?:\([^)]*\))?", gres)
        counts = [(kind, int(count or 1)) if not kind.isdecimal() else ("", int(kind)) for kind, count in gpus]
        found.append(
            Node(
                name=name,
                state=state.lower(),
                gpus=sum(count for _, count in counts),
                kinds=tuple(kind for kind, _ in counts if kind),
                cpus=int(cpus.rstrip("+")),
                memory=int(memory.rstrip("+")),
                features=frozenset(features.split(",")) - {"(null)"},
                reason="" if reason in ("none", "(null)") else reason,
            )
        )
    return found


def seconds(time: str) -> int | None:
    """Seconds of a time as Slurm takes it (90, 1:30:00, 2-12, 2-12:30), None for no limit."""
    if time.upper() in UNLIMITED:
        return None
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, secs = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minutes, secs = 0, parts[0], 0
    else:
        hours, minutes, secs = (0, *parts)[-3:]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + secs


def mebibytes(memory: str) -> int:
    """MiB of a size as Slurm takes it: 400G, 64000 (MiB), 0 for a node's whole memory."""
    number, unit = memory[:-1], memory[-1:].upper()
    return int(int(number) * _KIB[unit]) if unit in _KIB else int(memory or 0)


def _limits(deployment: Deployment, partition: Partition, asked: Mapping[str, str]) -> list[Finding]:
    found = []
    if not partition.is_up:
        found.append(
            Finding("partition", PROBLEM, f"{partition.name} is closed to jobs", "name another with --partition")
        )
    limit, wanted = partition.max_seconds, seconds(deployment.time)
    if limit is not None and wanted is not None and wanted > limit:
        found.append(Finding("time", PROBLEM, f"{deployment.time} is more than {partition.name} allows, {_clock(limit)}",
                             f"ask for less: --time={_clock(limit)}"))  # fmt: skip
    if partition.max_nodes is not None and deployment.nodes > partition.max_nodes:
        found.append(Finding("nodes", PROBLEM, f"{partition.name} gives a job {partition.max_nodes} nodes at most",
                             "name another with --partition, or a deployment on fewer nodes"))  # fmt: skip
    account = asked.get("--account", "")
    if partition.accounts and account not in partition.accounts:
        allowed = ", ".join(sorted(partition.accounts)[:5])
        state = PROBLEM if account else NOTE
        said = (
            f"{partition.name} does not take {account}"
            if account
            else f"none is named, and {partition.name} is particular"
        )
        found.append(Finding("account", state, said, f"name one with SITE_ACCOUNT or --account: {allowed}"))
    return found


def _nodes(deployment: Deployment, partition: Partition, asked: Mapping[str, str]) -> list[Finding]:
    """Are there enough nodes with all that is asked of each?"""
    feature = asked.get("--constraint", "")
    nodes = [node for node in partition.nodes if not re.fullmatch(r"[\w.-]+", feature) or feature in node.features]
    if not nodes:
        said = f"{partition.name} has no node" + (f" with the feature {feature}" if feature else "")
        return [Finding("nodes", PROBLEM, said, "name another with --partition, or correct --constraint")]
    wants = {"gpus": deployment.gpus_per_node, "cpus": deployment.cpus_per_task, "memory": mebibytes(deployment.memory)}
    for what, size in wants.items():
        if (most := max(getattr(node, what) for node in nodes)) < size:
            return [_too_much(what, deployment, partition, most)]
    able = [node for node in nodes if all(getattr(node, what) >= size for what, size in wants.items())]
    usable = [node for node in able if node.is_usable]
    out = "; ".join(f"{node.name} is {node.state.rstrip('*')}{f' ({node.reason})' if node.reason else ''}"
                    for node in able if not node.is_usable)  # fmt: skip
    if len(able) < deployment.nodes:
        return [Finding("nodes", PROBLEM, f"the job wants {deployment.nodes} and {partition.name} has {len(able)} such",
                        "name another with --partition, or a deployment on fewer nodes")]  # fmt: skip
    if len(usable) < deployment.nodes:
        return [Finding("nodes", PROBLEM, f"the job wants {deployment.nodes} and {len(usable)} take jobs: {out}",
                        "wait until they are back, or name another with --partition")]  # fmt: skip
    return [Finding("nodes", NOTE, out, "the job does without")] if out else []


def _too_much(what: str, deployment: Deployment, partition: Partition, most: int) -> Finding:
    if what == "gpus":
        said = f"the job wants {deployment.gpus_per_node} a node, and nodes of {partition.name} have {most}"
        return Finding("GPUs", PROBLEM, said, "name another with --partition, or use more nodes of fewer GPUs")
    if what == "cpus":
        said = f"the job wants {deployment.cpus_per_task} a node, and nodes of {partition.name} have {most}"
        return Finding("CPUs", PROBLEM, said, f"ask for less: --cpus-per-task={most}")
    said = f"the job wants {deployment.memory} a node, and nodes of {partition.name} have {most // 1024}G"
    return Finding("host memory", PROBLEM, said, f"ask for less: --mem={most // 1024}G")


def _kinds(deployment: Deployment, partition: Partition) -> list[Finding]:
    """A word on GPUs of another kind than the plan's, where Slurm tells kinds apart."""
    if deployment.is_small or not deployment.gpu:
        return []
    kinds = {kind for node in partition.nodes for kind in node.kinds}
    try:
        names, planned = {get_gpu(kind).name for kind in kinds}, get_gpu(deployment.gpu).name
    except HardwareError:
        return []
    if not names or planned in names:
        return []
    there = sorted(names)[0]
    return [Finding("GPUs", NOTE, f"{partition.name} has {', '.join(sorted(names))}, and the plan is for {planned}",
                    f"check it for these: GPU={there}")]  # fmt: skip


def _choose(partitions: Mapping[str, Partition]) -> str:
    return f"name one with SITE_PARTITION or --partition: {', '.join(partitions) or '`sinfo -s` lists them'}"


def _clock(duration: int) -> str:
    days, rest = divmod(duration, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
