"""How a deployment's job is doing: what Slurm says of it, put together with what the job itself wrote down.

While it runs, a job keeps a folder `$WORKSHOP_HOME/jobs/ID` with its launcher's lines and each rank's log, and at the end
its outcome. Slurm forgets a job some minutes after it has ended; the folder stays.
"""

import getpass
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers import connections, doctor, queue
from helpers.connections import READY as ANSWERS
from helpers.connections import Connection
from helpers.doctor import Diagnosis
from helpers.queue import Record, SlurmError, UnknownJobError
from helpers.reasons import why_it_waits

PENDING, STARTING, LOADING, WARMING_UP = "pending", "starting", "loading weights", "warming up"
READY, DRAINING, FINISHED, CANCELLED, FAILED = "ready", "draining", "finished", "cancelled", "failed"
PHASES = (PENDING, STARTING, LOADING, WARMING_UP, READY)  # in the order a healthy server goes through them
ENDED = (FINISHED, CANCELLED, FAILED)
GRACE = 30  # seconds a new job has to make its folder, on a slow file system too
TAIL = 2**17  # bytes read from the end of a log: it may grow to gigabytes

COLOURS = re.compile(r"\x1b\[[\d;]*m")

#: What vLLM's log says -> the phase that begins there; whatever comes last holds.
MARKERS = {
    r"Initializing a V1 LLM engine": STARTING,
    r"Starting to load model": LOADING,
    r"[Ll]oading [\w ]+:\s+(?P<percent>\d+)% Completed": LOADING,
    r"Loading weights took|Model loading took|KV cache size|init engine": WARMING_UP,
    r"Starting torch\.compile|Dynamo bytecode|Initial profiling|[Cc]apturing CUDA graphs|Graph capturing": WARMING_UP,
}


@dataclass(frozen=True)
class Job:
    """A handle: the job's id (12, or 12_3 for a task of an array), its name, and its number in SLURM_JOB_ID."""

    id: str
    name: str = ""
    raw_id: str = ""

    @property
    def folder(self) -> Path:
        """Where it keeps its logs and its outcome, on every node."""
        return connections.home() / "jobs" / self.id

    def __str__(self) -> str:
        return f"job {self.id}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class Status:
    """Where a job stands: a phase of PHASES or ENDED, or draining. `percent` is of the weights, while they load; `base_url`
    is there when it is ready. `time_left` is as Slurm writes it."""

    job: Job
    phase: str
    detail: str = ""
    percent: int | None = None
    base_url: str | None = None
    model: str | None = None
    nodes: str = ""
    time_left: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.phase in ENDED

    def __str__(self) -> str:
        if self.phase == READY:
            return f"{self.job} is ready: {self.model} answers at {self.base_url}"
        verb = "has" if self.phase in (FINISHED, FAILED) else "was" if self.phase == CANCELLED else "is"
        percent = "" if self.percent is None else f" {self.percent}%"
        return f"{self.job} {verb} {self.phase}{percent}" + (f": {self.detail}" if self.detail else "")


# --- which job -----------------------------------------------------------------------------------------------------


def find(job: Job | str | int | None = None) -> tuple[Job, Record | None]:
    """The job and what Slurm knows of it; without an id, the newest of this user's workshop jobs.

    Raises UnknownJobError when there is none or it is another user's, SlurmError when Slurm does not answer.
    """
    if job is None:
        return _newest()
    number = job.id if isinstance(job, Job) else str(job)
    if not re.fullmatch(r"\d+(_\d+)?", number):
        raise UnknownJobError(f"{number} is no job's number: `squeue --me` lists yours.")
    record = queue.record(number)
    if record is None and not (connections.home() / "jobs" / number).is_dir():
        record = queue.accounted(number)
    if record is None:
        known = job if isinstance(job, Job) else Job(number, raw_id=number)
        if not known.folder.is_dir() and not known.name:
            raise UnknownJobError(f"Slurm knows no job {number}, and it left no folder: `squeue --me` lists your jobs.")
        return known, None
    if record.uid not in (os.getuid(), -1):
        raise UnknownJobError(f"Job {number} is not yours: `squeue --me` lists the jobs of {getpass.getuser()}.")
    return handle(record), record


def handle(record: Record) -> Job:
    """The handle of the job that a record tells of."""
    return Job(record.id, record.name, record.raw_id)


def mine(*, ended: bool = False, patience: float = queue.PATIENCE) -> list[Record]:
    """This user's jobs that are deployments of this workshop, the newest first. Raises SlurmError."""
    return [record for record in queue.records(ended=ended, patience=patience) if _is_ours(record)]


def _is_ours(record: Record) -> bool:
    """It has made a job folder here, or it is too young for one and comes from a workshop's slurm folder."""
    if record.state == "FAILED" and not record.nodes:
        return False  # refused by sbatch: nobody was ever given its number
    folder = connections.home() / "jobs" / record.id
    with suppress(OSError):  # job numbers may begin anew: an older folder is another job's
        if folder.stat().st_mtime >= _moment(record.submitted):
            return True
    if record.nodes and time.time() - _moment(record.start) > GRACE:
        return False  # it keeps its folder elsewhere
    return (Path(record.command).parent / "lib" / "job.sh").is_file()


def _moment(slurm_time: str) -> float:
    """Seconds since the epoch; now for N/A."""
    try:
        return datetime.fromisoformat(slurm_time).timestamp()
    except ValueError:
        return time.time()


def _newest() -> tuple[Job, Record | None]:
    ours = mine(ended=True)
    active = [record for record in ours if not record.is_over]
    if ours:
        return handle((active or ours)[0]), (active or ours)[0]
    folders = sorted((connections.home() / "jobs").glob("[0-9]*"), key=lambda path: path.stat().st_mtime)
    if not folders:
        raise UnknownJobError(
            "You have no workshop job: `python -m helpers.slurm deployments` lists what you can submit."
        )
    return Job(folders[-1].name, raw_id=folders[-1].name), None


# --- how it is doing -----------------------------------------------------------------------------------------------


def status(job: Job | str | int | None = None) -> Status:
    """Where a job stands now. Raises UnknownJobError or SlurmError."""
    return assess(*find(job))


def assess(job: Job, record: Record | None) -> Status:
    """The status that follows from Slurm's record (None: it has forgotten the job) and the job's own files."""
    if record is not None and record.waits:
        return Status(job, PENDING, why_it_waits(record))
    if record is not None and record.runs:
        place = {"nodes": record.nodes, "time_left": record.time_left if record.time_left != "INVALID" else ""}
        return _running(job, place, ends=record.state == "COMPLETING")
    return _over(job, record)


def _running(job: Job, place: dict[str, Any], ends: bool) -> Status:
    if outcome := read_outcome(job):
        return Status(job, *outcome, **place)
    if connection := connection_of(job):
        if connection.state == ANSWERS:
            return Status(job, READY, base_url=connection.base_url, model=connection.model, **place)
    elif last := [line for line in launcher_lines(job) if " draining: " in line]:
        return Status(job, DRAINING, last[-1].split(" draining: ")[1], **place)
    if ends:
        return Status(job, DRAINING, "Slurm is ending its processes", **place)
    phase, percent = phase_of(tail(job.folder / "rank-0.log"))
    return Status(job, phase, percent=percent, **place)


def _over(job: Job, record: Record | None) -> Status:
    phase, detail = read_outcome(job) or ("", "")
    state = record.state if record else ""
    if phase in (FAILED, FINISHED):
        return Status(job, phase, detail)
    if state == "CANCELLED" or (phase == CANCELLED and state != "TIMEOUT"):
        return Status(job, CANCELLED, "" if state == "CANCELLED" else detail)
    if state == "COMPLETED":
        return Status(job, FINISHED)
    return Status(job, FAILED, obituary(job, record))


def phase_of(log: str) -> tuple[str, int | None]:
    """The phase a server's log has come to, and the percentage of the weights loaded."""
    found = [(match.start(), phase, match) for marker, phase in MARKERS.items() for match in re.finditer(marker, log)]
    if not found:
        return STARTING, None
    _, phase, match = max(found, key=lambda item: item[0])
    percent = match.groupdict().get("percent")
    return phase, None if percent is None else int(percent)


def read_outcome(job: Job) -> tuple[str, str] | None:
    """(phase, detail) as the job itself left it, None while it has not."""
    with suppress(OSError):
        word, _, detail = (job.folder / "outcome").read_text().strip().partition(":")
        return (word if word in ENDED else FINISHED), detail.strip()
    return None


def diagnose(job: Job, record: Record | None = None) -> Diagnosis:
    """The doctor's opinion. Raises doctor.NothingToReadError when neither the job nor Slurm has left a word."""
    if record and record.waits:
        return Diagnosis("pending", f"the job waits in the queue: {why_it_waits(record)}")
    state = f"{record.state} {record.reason}" if record else None
    return doctor.examine(job.folder, slurm_log=slurm_log(job), state=state)


def obituary(job: Job, record: Record | None = None) -> str:
    """Why a job ended, in a line: its own last words, or the doctor's."""
    phase, detail = read_outcome(job) or ("", "")
    if phase == FAILED:
        return detail
    try:
        diagnosis = diagnose(job, record)
    except doctor.NothingToReadError:
        return "it left no log; submit it again."
    if diagnosis.known or not record or record.reason in ("None", ""):
        return str(diagnosis)
    return f"Slurm says {record.reason}; {diagnosis}"


def connection_of(job: Job) -> Connection | None:
    """The connection file that the job's server keeps; None while there is none."""
    ids = {job.id, job.raw_id}
    return next((found for found in connections.read_all() if found.job_id in ids), None)


def launcher_lines(job: Job) -> list[str]:
    """The launcher's lines about this run: a job that was requeued has earlier ones."""
    lines = tail(job.folder / "launcher.log").splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[\d:]+ starting ", line)]
    return lines[starts[-1] :] if starts else lines


# --- what it wrote -------------------------------------------------------------------------------------------------


def tail(path: Path, size: int = TAIL) -> str:
    """The last `size` bytes of a file, without colours, a progress bar's states as lines; empty when it is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return COLOURS.sub("", file.read().decode(errors="replace")).replace("\r", "\n")
    except OSError:
        return ""


def slurm_log(job: Job) -> Path | None:
    """Slurm's own log of the job: the launcher's lines, and what Slurm itself has to say."""
    with suppress(SlurmError):
        if path := queue.details(job.id).get("StdOut"):
            return Path(path)
    named = [path for path in (connections.home() / "logs").glob(f"*-{job.id}.log") if not path.name[:8].isdigit()]
    return max(named, key=lambda path: path.stat().st_mtime, default=None)


def read_log(job: Job, rank: int | None = None, read: Callable[[Path], str] = tail) -> tuple[Path, str]:
    """A log's path and end: of a rank, or, without one, Slurm's own.

    Raises UnknownJobError when there is none (yet).
    """
    path = slurm_log(job) if rank is None else job.folder / f"rank-{rank}.log"
    if path is None or not path.is_file():
        ranks = sorted(entry.stem.removeprefix("rank-") for entry in job.folder.glob("rank-*.log"))
        there = f"it has logs of rank {', '.join(ranks)}" if ranks else "it has not started, or its folder was removed"
        raise UnknownJobError(f"There is no such log of {job}: {there}. `python -m helpers.slurm status` tells more.")
    return path, read(path)
