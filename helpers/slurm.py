"""Deployments on a Slurm cluster: check, submit, follow, look into and cancel them.

job = slurm.submit("llama-3.1-8b"); slurm.wait(job, on_status=print)      from a notebook
python -m helpers.slurm submit llama-3.1-8b                               from a terminal
sbatch slurm/llama-3.1-8b.sbatch                                          without Python
"""

import difflib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from helpers import connections, jobs, queue, sites
from helpers import deployments as shelf
from helpers import preflight as checks
from helpers.deployments import Deployment
from helpers.doctor import Diagnosis
from helpers.environment import PROBLEM, Finding
from helpers.jobs import READY, Job, Status, assess, status
from helpers.queue import SlurmError, UnknownJobError
from helpers.sites import Site

__all__ = ["Job", "Status", "cancel", "deployments", "doctor", "logs", "preflight", "status", "submit", "top", "wait"]

PAUSE = 0.5  # seconds between two looks at a job's files
START = 2**14  # bytes: how much of the past `follow` shows
VARIABLES = {
    "MODEL", "TP", "PP", "DP", "MAX_MODEL_LEN", "GPU", "FLAGS", "PORT", "LAUNCHER", "SERVED_NAME", "DRAIN_SECONDS", "SMALL",
}  # fmt: skip


class PreflightError(SlurmError):
    """The deployment would fail, for the reasons named."""


class Settings(TypedDict, total=False):
    """What may be said of a submission beside the deployment's name; see `prepare`."""

    small: bool
    site: str | None
    partition: str | None
    account: str | None
    reservation: str | None
    time: str | None
    variables: Mapping[str, object] | None
    extra: Sequence[str]


@dataclass(frozen=True)
class Submission:
    """What sbatch is given: options for Slurm, variables for the script."""

    deployment: Deployment
    options: list[str]
    variables: dict[str, str]

    @property
    def arguments(self) -> list[str]:
        """Behind `sbatch --parsable`. Options on the command line win over the file's, and of two the later one."""
        return ["--export=ALL", *self.options, str(self.deployment.path)]

    @property
    def shell(self) -> str:
        """The command as a person would type it."""
        folder = logs_folder()
        before = "" if folder.is_dir() else f"mkdir -p -m 700 {shlex.quote(str(folder))} && "
        foreign = sorted(os.environ.keys() - queue.clean_environment().keys())
        unset = "env " + " ".join(f"-u {name}" for name in foreign) + " " if foreign else ""
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in self.variables.items())
        return f"{before}{unset}{variables}{shlex.join(['sbatch', '--parsable', *self.arguments])}"


def logs_folder() -> Path:
    """Where the logs of this user's jobs go."""
    return connections.home() / "logs"


# --- before --------------------------------------------------------------------------------------------------------


def deployments(site: str | None = None) -> list[Deployment]:
    """What can be submitted: first what fits this site's GPUs, then the others. Raises SiteError."""
    profile, found = sites.read_site(site), list(shelf.catalogue().values())
    return sorted(found, key=lambda deployment: not has_gpus_for(profile, deployment))


def has_gpus_for(site: Site, deployment: Deployment) -> bool:
    """Whether the profile names such GPUs; one that names none is not asked."""
    named = any(name.startswith("SITE_SBATCH_") for name in site.variables)
    return site.is_small or not named or not deployment.gpu or bool(site.gpu_options(deployment.gpu))


def prepare(
    name: str, *, small: bool = False, site: str | None = None, partition: str | None = None, account: str | None = None,
    reservation: str | None = None, time: str | None = None, variables: Mapping[str, object] | None = None,
    extra: Sequence[str] = (),
) -> Submission:  # fmt: skip
    """The submission of a deployment, by its name or the path of an sbatch file.

    `small` serves the workshop's small Llama in its place; `variables` are those the sbatch files read (MODEL, TP, ...),
    `extra` are more options for sbatch. Raises DeploymentError, SiteError or SlurmError for what there is not.
    """
    deployment, profile = shelf.find(name), sites.read_site(site)
    given = {name: str(value) for name, value in (variables or {}).items()} | ({"SMALL": "1"} if small else {})
    _check_names(given, VARIABLES | set(deployment.variables))
    own = {"partition": partition, "account": account, "reservation": reservation, "time": time}
    options = [f"--output={logs_folder()}/%x-%j.log", *sites.sbatch_options(profile, deployment.configured(given))]
    options += [f"--{option}={value}" for option, value in own.items() if value]
    where = {"WORKSHOP_ROOT": shelf.ROOT, "WORKSHOP_SITE": profile.name, "WORKSHOP_HOME": connections.home().absolute()}
    return Submission(deployment, [*options, *extra], {name: str(path) for name, path in where.items()} | given)


def _check_names(given: Mapping[str, str], known: set[str]) -> None:
    for name in given:
        near = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.75)
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or (name not in known and near):
            meant = f"did you mean {near[0]}?" if near else f"choose {', '.join(sorted(known))}."
            raise SlurmError(f"{name} is no variable of this deployment: {meant}")


def preflight(submission: Submission | str, **settings: Unpack[Settings]) -> list[Finding]:
    """What stands against a deployment, and its mend, before it waits in a queue; the settings are those of `prepare`.

    Raises what `prepare` raises.
    """
    if isinstance(submission, str):
        submission = prepare(submission, **settings)
    site = sites.read_site(submission.variables["WORKSHOP_SITE"])
    return checks.preflight(submission.deployment, site, variables=submission.variables, options=submission.options)


def submit(name: str, *, check: bool = True, **settings: Unpack[Settings]) -> Job:
    """Check a deployment and submit it; returns at once, `wait` follows it. The settings are those of `prepare`.

    Raises PreflightError when it would fail (not with check=False), SlurmError when Slurm refuses it.
    """
    submission = prepare(name, **settings)
    need_slurm()
    if check:
        problems = [finding for finding in preflight(submission) if finding.state == PROBLEM]
        if problems:
            told = "; ".join(f"{finding.what}: {finding.found} -> {finding.mend}" for finding in problems)
            raise PreflightError(f"{submission.deployment.name} would fail. {told}")
    return send(submission)


def need_slurm() -> None:
    """Raises SlurmError where nothing can be submitted, before anything is checked in vain."""
    queue.run(["sbatch", "--version"])
    queue.partitions()


def send(submission: Submission) -> Job:
    """Submit without a check. Logs are for the user alone. Raises SlurmError when Slurm refuses it."""
    try:
        logs_folder().mkdir(parents=True, exist_ok=True)
        logs_folder().chmod(0o700)
    except OSError as error:
        raise SlurmError(
            f"{logs_folder()} cannot be made ({error.strerror}): set WORKSHOP_HOME to a folder on shared storage."
        ) from error
    number = queue.sbatch(submission.arguments, queue.clean_environment() | submission.variables)
    return Job(number, submission.deployment.name, number)


# --- while ---------------------------------------------------------------------------------------------------------


def watch(job: Job | str | int | None = None) -> Iterator[Status]:
    """A job's status twice a second until it is over. Its files are read each time; Slurm is asked less and less often.

    Without a job, your newest. Raises SlurmError for a job that there is not.
    """
    job, record = jobs.find(job)
    begun = asked = time.monotonic()
    asked_at, current = time.time(), assess(job, record)
    while True:
        yield current
        if current.is_over:
            return
        time.sleep(PAUSE)
        due = time.monotonic() - asked > min(15, 2 + (time.monotonic() - begun) / 20)
        if due or (record and record.waits and _wrote_after(job, asked_at)):
            asked, asked_at = time.monotonic(), time.time()
            with suppress(SlurmError):  # it may be busy; the job goes on without it
                record = queue.record(job.id)
                current = assess(job, record)
        elif record and record.runs:
            current = assess(job, record)


def _wrote_after(job: Job, moment: float) -> bool:
    try:
        return (job.folder / "launcher.log").stat().st_mtime > moment
    except OSError:
        return False


def wait(
    job: Job | str | int | None = None,
    timeout: float | None = None,
    on_status: Callable[[Status], object] | None = None,
) -> Status:
    """Wait until a job is ready or over, at most `timeout` seconds; returns where it stands then.

    Without a job, your newest one, here and in what follows. Raises SlurmError for a job that there is not.
    `on_status` is called with each Status that differs from the one before: pass `print` to follow it.
    """
    deadline, last = time.monotonic() + (float("inf") if timeout is None else timeout), None
    for current in watch(job):
        if on_status and str(current) != last:
            on_status(current)
            last = str(current)
        if current.phase == READY or time.monotonic() >= deadline:
            break
    return current


def cancel(job: Job | str | int | None = None, timeout: float = 60) -> Status:
    """Cancel a job; returns when it has ended and its connection file is gone.

    Raises SlurmError, naming what is left, when that takes longer than `timeout` seconds.
    """
    job, record = jobs.find(job)
    deadline = time.monotonic() + timeout
    if record and not record.is_over:
        queue.scancel(job.id)
    while record and not record.is_over:
        if time.monotonic() > deadline:
            left = f"Slurm says {record.state}" + (f" on {record.nodes}" if record.nodes else "")
            raise SlurmError(
                f"{job} is cancelled and has not ended after {timeout:g} s: {left}. `squeue --jobs={job.id}` shows when it has."
            )
        time.sleep(PAUSE)
        record = queue.record(job.id)
    if connection := jobs.connection_of(job):  # a job that was killed could not
        connection.remove()
    return assess(job, record)


def logs(job: Job | str | int | None = None, rank: int | None = None) -> str:
    """The end of a job's log: of one rank's vLLM, or, without a rank, of the job's launcher and Slurm."""
    return jobs.read_log(jobs.find(job)[0], rank)[1]


def follow(job: Job | str | int | None = None, rank: int | None = None) -> Iterator[str]:
    """A log as it grows, until the job is over; one that is not there yet is waited for."""
    job, path, position = jobs.find(job)[0], None, 0
    for current in watch(job):
        with suppress(UnknownJobError, OSError):
            if path is None:
                path = jobs.read_log(job, rank, read=lambda _: "")[0]
                position = max(0, path.stat().st_size - START)
            with open(path, "rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            if text:
                yield text.decode(errors="replace")
        if current.is_over:
            return


def top(job: Job | str | int | None = None) -> list[dict[str, Any]]:
    """What each GPU of a running job does at this moment; where there are no GPUs, its processes. See slurm_top.top."""
    from helpers import slurm_top

    return slurm_top.top(jobs.find(job)[0])


def doctor(job: Job | str | int | None = None) -> Diagnosis:
    """Why a job failed or is stuck: the cause, the line that proves it, and the mend."""
    return jobs.diagnose(*jobs.find(job))


if __name__ == "__main__":
    import sys

    from helpers.slurm_command import main

    sys.exit(main())
