"""Slurm's commands as functions: what is queued, which nodes are out, submit and cancel. Their text in, a dataclass out.

Each command gets seconds, not minutes: Slurm's own wait for a controller that does not answer is a minute long.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from helpers.errors import WorkshopError

PATIENCE = 15  # seconds for one command
#: Of a process's environment, what belongs to the job, server or notebook it runs in and would steer the new job.
FOREIGN = ("SLURM_", "SBATCH_", "VLLM_", "PMI_", "PMIX_", "FORCE_COLOR", "CLICOLOR", "MPLBACKEND")
KEPT = {"SLURM_CONF"}  # where the cluster is
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
UNKNOWN_ID = "Invalid job id"
SEPARATOR = "\x1f"  # in no job's name


class SlurmError(WorkshopError):
    """Slurm is not here, does not answer, or refuses."""


class UnknownJobError(SlurmError):
    """No such job, or not one of this user's."""


@dataclass(frozen=True)
class Record:
    """What Slurm knows of a job at this moment. Times are local, as Slurm writes them, or N/A."""

    id: str  # 12, or 12_3 for a task of an array
    raw_id: str  # its number in SLURM_JOB_ID
    uid: int
    state: str
    reason: str
    partition: str
    submitted: str
    start: str
    end: str
    time_left: str
    nodes: str
    name: str
    command: str

    @property
    def waits(self) -> bool:
        """Whether it is queued."""
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Whether it holds nodes."""
        return self.state in RUNNING

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return not self.waits and not self.runs


FORMAT = SEPARATOR.join(("%i", "%A", "%U", "%T", "%r", "%P", "%V", "%S", "%e", "%L", "%N", "%j", "%o"))


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def partitions() -> list[str]:
    """The names of this cluster's partitions, the default one first. Raises SlurmError where there is no cluster."""
    names = ask(["sinfo", "--noheader", "--format=%P"]).split()
    return [name.rstrip("*") for name in sorted(names, key=lambda name: not name.endswith("*"))]


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (default: this process's) without what a surrounding job or server put there.

    A notebook on a cluster runs in a job of its own, whose SLURM_* would otherwise shape the jobs it submits.
    """
    environment = os.environ if environment is None else environment
    return {name: value for name, value in environment.items() if name in KEPT or not name.startswith(FOREIGN)}


def run(
    command: Sequence[str], *, patience: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command, its output as text, within `patience` seconds.

    Raises SlurmError when there is no such command or no answer in time.
    """
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=patience, check=False,
            stdin=subprocess.DEVNULL, env=clean_environment() if environment is None else dict(environment),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmError(
            f"There is no {command[0]} here, so no Slurm: log in to a cluster, or bring up the test cluster with `make cluster`."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"Slurm did not answer `{command[0]}` within {patience:g} s: its controller is busy or down. Try again in a minute; `scontrol ping` shows it."
        ) from error


def ask(command: Sequence[str], *, patience: float = PATIENCE) -> str:
    """What the command prints within `patience` seconds.

    Raises UnknownJobError for a job Slurm does not know, else SlurmError, with Slurm's words.
    """
    done = run(command, patience=patience)
    if done.returncode == 0:
        return done.stdout
    said = " ".join((done.stderr or done.stdout).split())
    if UNKNOWN_ID in said:
        raise UnknownJobError("Slurm knows no such job: `squeue --me` lists yours.")
    if "configuration" in said:
        raise SlurmError(
            "Slurm's commands are here and name no cluster (no slurm.conf): log in to a cluster, or set SLURM_CONF as `make cluster` says."
        )
    if "Unable to contact" in said:
        raise SlurmError(f"Slurm's controller cannot be reached from here: {said} `scontrol ping` shows it.")
    raise SlurmError(f"`{shlex.join(command[:2])}` failed: {said or f'exit status {done.returncode}'}")


def parse_records(text: str) -> list[Record]:
    """The lines of `squeue --format FORMAT`."""
    found = []
    for line in text.splitlines():
        values = line.split(SEPARATOR, len(fields(Record)) - 1)
        if len(values) == len(fields(Record)):
            job, raw, uid, *others = values
            found.append(Record(job, raw, int(uid), *others))
    return found


def records(*, ended: bool = True, patience: float = PATIENCE) -> list[Record]:
    """This user's jobs, the newest first; with those that ended not long ago (slurm.conf: MinJobAge) unless told not to.

    Raises SlurmError when Slurm is not here or does not answer.
    """
    command = ["squeue", "--noheader", f"--user={os.getuid()}", f"--format={FORMAT}"]
    command += ["--states=all"] if ended else []
    newest = sorted(parse_records(ask(command, patience=patience)), key=lambda r: int(r.raw_id), reverse=True)
    return sorted(newest, key=lambda record: record.submitted, reverse=True)


def record(job: str, *, patience: float = PATIENCE) -> Record | None:
    """What Slurm knows of a job, None when it knows none of this id, or no more. Raises SlurmError."""
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={FORMAT}"]
    try:
        found = parse_records(ask(command, patience=patience))
    except UnknownJobError:
        return None
    return next((entry for entry in found if job in (entry.id, entry.raw_id)), found[0] if found else None)


ACCOUNTED = (
    "JobID",
    "JobIDRaw",
    "UID",
    "State",
    "Reason",
    "Partition",
    "Submit",
    "Start",
    "End",
    "NodeList",
    "JobName",
)


def parse_accounting(text: str) -> list[Record]:
    """The lines of `sacct --parsable2 --format ACCOUNTED`; the state loses its tail, as in `CANCELLED by 1000`."""
    found = []
    for line in text.splitlines():
        values = line.split("|", len(ACCOUNTED) - 1)
        if len(values) == len(ACCOUNTED):
            job, raw, uid, state, reason, partition, submitted, start, end, nodes, name = values
            word, number = state.split()[0], int(uid or -1)
            found.append(Record(job, raw, number, word, reason, partition, submitted, start, end, "", nodes, name, ""))
    return found


def accounted(job: str) -> Record | None:
    """What the accounting database remembers of a job; None where there is none, or it does not."""
    command = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={job}",
        f"--format={','.join(ACCOUNTED)}",
    ]
    try:
        return next(iter(parse_accounting(ask(command))), None)
    except SlurmError:
        return None


_states: dict[str, tuple[float, str | SlurmError | None]] = {}


def job_state(job: str, *, age: float = 3, patience: float = 5) -> str | None:
    """Slurm's word for the job's state (RUNNING, ...), None for an unknown job; at most `age` seconds old.

    Raises SlurmError when Slurm does not answer: then nothing is known.
    """
    when, state = _states.get(job, (float("-inf"), None))
    if time.monotonic() - when > age:
        try:
            found = record(job, patience=patience)
            state = found.state if found else None
        except SlurmError as error:
            state = error
        _states[job] = (time.monotonic(), state)
    if isinstance(state, SlurmError):
        raise state
    return state


def details(job: str) -> dict[str, str]:
    """`scontrol show job`, its keys as they are: StdOut, ExitCode, ...; empty for a job that it does not know.

    Raises SlurmError.
    """
    try:
        return parse_details(ask(["scontrol", "show", "job", job]))
    except UnknownJobError:
        return {}


def parse_details(text: str) -> dict[str, str]:
    """Paths stand alone on their lines, as they may hold blanks and equals signs; other lines hold several values."""
    alone = {"Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment", "AdminComment"}
    found: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        key = line.partition("=")[0]
        pairs = [line] if key in alone else [word for word in line.split() if "=" in word]
        found |= {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    return found


def nodes_out(partition: str) -> dict[str, str]:
    """Nodes of a partition that take no jobs, each with the reason its administrator gave. Raises SlurmError."""
    text = ask(["sinfo", "--noheader", "--list-reasons", f"--partition={partition.rstrip('*')}", "--format=%N|%E"])
    return dict(line.split("|", 1) for line in text.splitlines() if "|" in line)


def knows_node(name: str) -> bool:
    """Whether the Slurm of this machine has a node of this name. Raises SlurmError when it does not answer."""
    return bool(ask(["sinfo", "--noheader", f"--nodes={name.split('.')[0]}", "--format=%N"], patience=5).strip())


#: what sbatch says -> what to do about it
REFUSALS = {
    "node configuration is not available": "No node of this partition has so many GPUs, cores and memory at once: name another --partition, or ask for less (`-- --mem=64G --cpus-per-task=8`); `sinfo -o '%P %G %c %m'` shows what there is.",
    "invalid partition": "Name one that exists, with --partition or in the site profile: `sinfo -s` lists them.",
    "Invalid account": "Name your account with --account or in the site profile: `sacctmgr show associations user=$USER format=account,partition` lists them.",
    "time limit is invalid": "Ask for less with --time: `sinfo -s` shows each partition's limit.",
    "generic resource": "This partition has no such GPUs: name another --partition; `sinfo -o '%P %G'` shows what there is.",
    "reservation": "Name a reservation that is yours and active: `scontrol show reservation` lists them.",
    "QOS": "A limit of your account or QOS stands against it: cancel another job, ask for less, or ask your cluster's support.",
    "MaxSubmit": "You have as many jobs queued as you may: cancel one first.",
}


def sbatch(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit; returns the job's id. `arguments` stand behind `sbatch --parsable`. Raises SlurmError, with the mend."""
    done = run(["sbatch", "--parsable", *arguments], patience=60, environment=environment)
    if done.returncode == 0:
        return done.stdout.split("\n")[-2].split(";")[0].strip()  # JOB or JOB;CLUSTER, after what a site's plug-in says
    said = " ".join(done.stderr.replace("sbatch: error: ", "").split())
    mend = next((mend for words, mend in REFUSALS.items() if words.lower() in said.lower()), "")
    raise SlurmError(f"Slurm refuses the job: {said.rstrip('.')}. {mend}".strip())


def scancel(job: str) -> None:
    """Cancel a job; returns before it has ended. One that has ended already is no error. Raises SlurmError."""
    done = run(["scancel", job])
    said = " ".join(done.stderr.split())
    if done.returncode and "already completing or completed" not in said:
        raise SlurmError(f"Job {job} was not cancelled: {said.removeprefix('scancel: error: ')}")
