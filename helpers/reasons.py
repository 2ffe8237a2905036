"""Why a job waits, in plain words: `squeue` gives one CamelCase word."""

from contextlib import suppress

from helpers import queue
from helpers.queue import Record, SlurmError

REASONS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "jobs of higher priority go first",
    "Resources": "it is next, and waits for nodes to become free",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "UnavailableNodes": "nodes that it needs are down, drained or reserved",
    "Nodes": "nodes that it needs are down, drained or reserved",
    "Dependency": "it waits for another job, as its --dependency says",
    "DependencyNeverSatisfied": "the job it depends on failed, so it will never start; cancel it",
    "BeginTime": "it is not to start before its --begin time",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it; ask your cluster's support",
    "JobArrayTaskLimit": "enough tasks of its array are running",
    "PartitionTimeLimit": "it asks for more time than the partition allows, so it will never start; cancel it and ask for less with --time",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows, so it will never start; cancel it and name another --partition",
    "PartitionConfig": "the partition does not allow what it asks for; cancel it, and compare with `scontrol show partition`",
    "PartitionDown": "the partition takes no jobs at the moment",
    "PartitionInactive": "the partition is switched off",
    "BadConstraints": "no node can give what it asks for, so it will never start; cancel it and ask for less",
    "InvalidAccount": "its account is not valid; cancel it and name yours with --account",
    "InvalidQOS": "its QOS is not valid; cancel it and name yours with `-- --qos=...`",
    "AccountNotAllowed": "its account may not use this partition; cancel it and name another --account or --partition",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation is gone; cancel it and submit without --reservation",
    "Licenses": "it waits for a licence",
    "Prolog": "its nodes are being prepared",
    "Cleaning": "an earlier run of it is being cleaned up",
    "NodeDown": "a node that it needs is down",
    "launch failed requeued held": "it could not be launched and is held; `scontrol release` tries again",
    "JobLaunchFailure": "it could not be launched; cancel it and submit again",
    "MaxGRESPerAccount": "your account uses as many GPUs as it may",
    "FrontEndDown": "Slurm's front end is down",
    "Power": "it waits for electric power under the cluster's cap",
    "NonZeroExitCode": "an earlier run of it failed",
}


def in_words(reason: str) -> str:
    """Plain words for a reason of squeue's; one that is not known is given as it is."""
    word = reason.partition(",")[0].strip("() ")
    if word in REASONS:
        return REASONS[word]
    if word.startswith(("QOS", "Assoc", "Max", "Job")) and ("Max" in word or "Grp" in word or "Limit" in word):
        what = "GPUs or other resources" if "GRES" in word or "gres" in word or "TRES" in word else _limited(word)
        whose = "your QOS" if word.startswith("QOS") else "your account"
        return f"{whose} allows no more {what} at once ({word}): it starts when another of its jobs ends"
    return f"Slurm gives the reason {reason}"


def _limited(word: str) -> str:
    kinds = {"Cpu": "cores", "CPU": "cores", "Mem": "memory", "Node": "nodes", "Wall": "run time", "Job": "jobs"}
    return next((kind for part, kind in kinds.items() if part in word.removeprefix("QOS").removeprefix("Job")), "jobs")


def why_it_waits(record: Record) -> str:
    """One clause: the reason, the nodes that are out and why, and Slurm's estimate of the start where it has one."""
    if record.state == "CONFIGURING":
        return "its nodes are being started"
    parts = [in_words(record.reason)]
    if record.reason.startswith(
        ("ReqNodeNotAvail", "Resources", "UnavailableNodes", "Nodes", "PartitionDown", "NodeDown")
    ):
        with suppress(SlurmError):
            out = queue.nodes_out(record.partition)
            parts += ["; ".join(f"{nodes} is out: {reason}" for nodes, reason in out.items())] if out else []
    if record.start not in ("N/A", "Unknown", ""):
        parts.append(f"Slurm expects it to start by {record.start.replace('T', ' ')}")
    return "; ".join(parts)
