"""Name the cause of a server's failure from its logs, with the line that proves it and the mend.

    python -m helpers.doctor [--brief] [--json] JOB_DIR|LOGFILE|-

JOB_DIR is a Slurm job's folder in ~/.llm-serving-workshop/jobs, LOGFILE any log of vLLM, - the standard input. Exit status:
0 the cause is known, 1 it is not, 2 there is nothing to read. `--brief` prints one line, and says on standard error when
the cause is unknown, so that a script can then fall back to what it knows. Standard library only: it also runs where
vLLM does, inside a container.
"""

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.causes import CAUSES, NETWORK, NOTES, Cause
from helpers.errors import WorkshopError
from helpers.log_lines import Line, lines_of, read_files, read_stream, redact

SILENCE = 300  # seconds without a line after which a start counts as stuck; torch.compile is silent for minutes

#: Lines with an error's name that are not the cause.
ECHOES = re.compile(
    r"Engine core initialization failed|See (?:root cause|stack trace)|EngineDeadError|Executor failed|BrokenPipeError|Error retrieving|Error in sys\.exit"
    r"|KeyboardInterrupt|CancelledError|SystemExit"
)
ERROR = re.compile(r"((?:\w+\.)*(?:\w+Error|\w*Exception): .+)$")
#: What a rank's log says on the way to readiness.
PHASES = [
    ("starting Python", re.compile("")),
    ("starting the engine", re.compile(r"Initializing a V1 LLM engine|vLLM API server version|headless")),
    ("waiting for the other ranks", re.compile(r"distributed_init_method=")),
    ("loading weights", re.compile(r"Starting to load model")),
    ("warming up", re.compile(r"Loading weights took|Model loading took|KV cache size")),
    ("opening the port", re.compile(r"Starting vLLM (?:API )?server|Application startup complete")),
]
MENDS = {
    "starting Python": "Read its log and see its node (`srun --jobid=JOB --overlap -w NODE top`): Python loads slowly from a busy shared file system",
    "starting the engine": "Read the end of its log; a slow shared file system is the usual reason",
    "waiting for the other ranks": NETWORK,
    "loading weights": "Keep the weights on a faster file system (SITE_MODELS, stage_weights.sbatch), and raise VLLM_ENGINE_READY_TIMEOUT_S",
    "warming up": "Give torch.compile a few minutes more, then try --enforce-eager",
    "opening the port": "Ask it yourself with curl from its node; a proxy in the environment (http_proxy) may be in the way",
}  # fmt: skip


class NothingToReadError(WorkshopError):
    """There is no log where one was named."""


@dataclass(frozen=True)
class Diagnosis:
    """Why a server failed. `cause` is a name of helpers.causes, or launcher (our own words), unknown, finished, serving,
    starting, stuck or pending; `evidence` the log line that proves it and `where` its file and line; `errors` holds the
    last errors when the cause is unknown, `notes` what else a reader should know."""

    cause: str
    sentence: str
    mend: str = ""
    evidence: str = ""
    file: str = ""
    line: int = 0
    where: str = ""
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the cause has a name."""
        return self.cause != "unknown"

    def __str__(self) -> str:
        return redact(" ".join(f"{part.rstrip('.')}." for part in (self.sentence, self.mend) if part))


# --- reading


def rank_of(path: Path) -> int:
    """The number in a log's name: 2 for rank-2.log, 0 where there is none."""
    return int(re.sub(r"\D", "", path.stem) or 0)


def job_files(job_dir: Path, slurm_log: Path | None) -> list[Path]:
    """Ranks first: they hold causes, the others mostly what followed from them."""
    logs = sorted(job_dir.glob("rank-*.log"), key=rank_of)
    if slurm_log is None:
        slurm_log = max((job_dir.parent.parent / "logs").glob(f"*-{job_dir.name}.log"), default=None)
    logs += [slurm_log] if slurm_log else []
    return logs + [path for name in ("launcher.log", "outcome") if (path := job_dir / name).exists()]


# --- judging


def find_cause(lines: Iterable[Line]) -> tuple[Cause, re.Match[str], Line] | None:
    """The cause that stands first in CAUSES, with the first line that shows it."""
    found, open_causes = None, CAUSES
    for line in lines:
        if line.harmless:
            continue
        for rank, cause in enumerate(open_causes):
            if match := cause.pattern.search(line.text):
                found, open_causes = (cause, match, line), open_causes[:rank]
                break
    return found


def last_errors(lines: Iterable[Line], count: int = 3) -> list[Line]:
    """The last different lines that name an error and are no echo of another one."""
    errors: dict[str, Line] = {}
    for line in lines:
        if not line.harmless and ERROR.search(line.text) and not ECHOES.search(line.text):
            errors.pop(line.text, None)
            errors[line.text] = line
    return list(errors.values())[-count:]


def judge(lines: list[Line], notes: Iterable[str] = ()) -> Diagnosis:
    """What the lines say of a server that has failed."""
    notes = (*notes, *(note for pattern, note in NOTES if any(pattern.search(line.text) for line in lines)))
    found, errors = find_cause(lines), last_errors(lines)
    unexplained = [line for line in errors if not any(cause.pattern.search(line.text) for cause in CAUSES)]
    if found and not (found[0].weak and unexplained):
        cause, match, line = found
        means, mend = cause.sentences(match)
        return told(cause.name, means, mend, line, notes=notes)
    for line in lines:
        if own := re.match(r"failed: (?!rank \d)(?P<means>.+?)\.(?: (?P<mend>.+))?$", line.text):
            return told("launcher", own["means"], own["mend"] or "", line, notes=notes)
    errors = unexplained or errors
    last = (errors or [line for line in lines if not line.harmless and 'File "' not in line.text] or lines)[-3:]
    named = ERROR.search(errors[-1].text) if errors else None
    sentence = f"vLLM said: {named[1]}" if named else "the cause is unknown: read the end of the log"
    return told("unknown", sentence, "", last[-1] if last else None, notes=notes, errors=last)


def told(
    cause: str, sentence: str, mend: str, line: Line | None, *, notes: Iterable[str] = (), errors: Iterable[Line] = ()
) -> Diagnosis:
    """A Diagnosis in which no key is left."""
    evidence, file, number, where = (line.shown, line.file, line.number, line.where) if line else ("", "", 0, "")
    said = tuple(f"{error.where}  {error.shown}" for error in errors)
    return Diagnosis(cause, redact(sentence), redact(mend), evidence, file, number, where, said, tuple(notes))


def progress(lines: list[Line]) -> int:
    """How far a rank has come, as a place in PHASES; -1 when it never logged a line."""
    return max((i for i, (_, sign) in enumerate(PHASES) if any(sign.search(line.text) for line in lines)), default=-1)


def silence(job_dir: Path) -> float:
    """Seconds since anything in the folder was written to."""
    written = [path.stat().st_mtime for path in job_dir.iterdir()] if job_dir.is_dir() else []
    return max(0.0, time.time() - max(written, default=time.time()))


def judge_start(ranks: dict[str, list[Line]], silent: float) -> Diagnosis:
    """A server that is neither ready nor dead: how far is each rank, and which one do the others wait for?

    `ranks` holds the lines of each rank's log by its name; `silent` is how many seconds nothing has been written.
    """
    names = {file: file.removesuffix(".log").replace("-", " ") for file in ranks}
    steps = {file: progress(lines) for file, lines in ranks.items()}
    phase = {file: PHASES[step][0] if step >= 0 else "not started" for file, step in steps.items()}
    story = "; ".join(f"{names[file]}: {phase[file]}" for file in ranks) or "no rank has started"
    behind = min(steps, key=lambda file: steps[file], default=None)
    last = ranks[behind][-1] if behind and ranks[behind] else None
    if silent < SILENCE:
        return told("starting", f"the server is still starting ({story}; last line {silent:.0f} s ago)", "", last)
    if behind is None or steps[behind] < 0:
        who = f"{names[behind]} never logged a line" if behind else "no rank ever logged a line"
        mend = "See whether its node is well (`sinfo -N`, `squeue --steps`), then cancel and start again with --exclude=NODE"
    else:
        alone = min(steps.values()) < max(steps.values())
        who = f"{names[behind]} is behind ({phase[behind]})" if alone else f"every rank stopped at {phase[behind]}"
        mend = MENDS[phase[behind]]
    sentence = f"the start is stuck: {who}, and nothing was logged for {silent / 60:.0f} minutes ({story})"
    return told("stuck", sentence, mend, last)


def examine(
    job_dir: Path | str,
    *,
    slurm_log: Path | str | None = None,
    state: str | None = None,
    running_for: float | None = None,
) -> Diagnosis:
    """Why the job with this folder failed, or how far it is.

    `slurm_log` is Slurm's own log of the job, by default the one in the folder logs beside jobs. `state` is what Slurm
    calls the job, with its reason if there is one ("TIMEOUT", "PENDING Resources"); `running_for` how many seconds it
    has run. Raises NothingToReadError when the folder holds no log and Slurm has not said anything either.
    """
    job_dir, state = Path(job_dir), state or ""
    logs, notes = read_files(job_files(job_dir, Path(slurm_log) if slurm_log else None))
    if not any(logs.values()) and not state:
        why = "; ".join(notes) or "it holds no rank-N.log, launcher.log or outcome"
        raise NothingToReadError(f"Nothing to read in {job_dir}: {why}. Name a job's folder or a log.")
    lines = [line for file in logs.values() for line in file]
    lines += lines_of(state if "JobState=" in state else f"JobState={state}", "Slurm") if state else []
    if re.search(r"\bPENDING\b", state):
        reason = " ".join(state.split()[1:]).strip("()") or state
        return told("pending", f"the job waits in the queue ({reason})", "", lines[-1])
    outcome = logs.get("outcome", [])
    if outcome and outcome[0].text.startswith("finished"):
        return told("finished", "the job came to its planned end", "", outcome[0])
    diagnosis = judge(lines, notes)
    ended = bool(outcome or re.search(r"FAILED|CANCELLED|COMPLETED|TIMEOUT|OUT_OF|_FAIL|PREEMPTED", state))
    ended = ended or any(re.search(r"ended with status|^failed: ", line.text) for line in logs.get("launcher.log", []))
    if ended:
        return diagnosis
    ready = next((line for line in logs.get("launcher.log", []) if line.text.startswith("ready:")), None)
    if ready and not (state and "RUNNING" not in state):
        return told("serving", "the server is ready", "", ready)
    if diagnosis.known:
        return diagnosis
    silent = silence(job_dir)
    if running_for is not None:
        silent = min(silent, running_for)
    return judge_start({name: file for name, file in logs.items() if name.startswith("rank-")}, silent)


def diagnose(log: str, returncode: int | None = None) -> str:
    """One line on why the server that wrote this log ended; an unknown cause is called unknown.

    `returncode` is as subprocess has it: -9 for a process that was killed by signal 9.
    """
    diagnosis = judge(lines_of(log, "log"))
    if not diagnosis.known and returncode is not None and returncode < 0:
        if returncode == -9:
            return "it was killed, most likely because the machine ran out of memory. Close other programs and start again."
        by_signal = judge(lines_of(f"exit code: {returncode}", "exit status"))
        diagnosis = by_signal if by_signal.known else diagnosis
    text = str(diagnosis)
    return text if diagnosis.known or not diagnosis.sentence.startswith("vLLM said") else text.removesuffix(".")


# --- the command


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis as the command prints it, a line or more for each part that it has."""
    rows = [("cause", diagnosis.cause), ("it says", redact(diagnosis.sentence))]
    rows += [("evidence", f"{diagnosis.where}\n{diagnosis.evidence}")] if diagnosis.evidence else []
    rows += [("mend", diagnosis.mend)] if diagnosis.mend else []
    rows += [("errors", "\n".join(diagnosis.errors))] if diagnosis.errors else []
    rows += [("note", note) for note in diagnosis.notes]
    return "\n".join(f"{name:<10}" + text.replace("\n", f"\n{'':<10}") for name, text in rows)


def look(target: str) -> Diagnosis:
    """The diagnosis of a job's folder, a log, or of what comes in ("-"). Raises NothingToReadError."""
    if target == "-":
        lines, notes = read_stream(sys.stdin.buffer, "stdin")
    elif Path(target).is_dir():
        return examine(target)
    else:
        logs, notes = read_files([Path(target)])
        lines = [line for file in logs.values() for line in file]
    if not lines:
        raise NothingToReadError(
            f"Nothing to read in {target}: {'; '.join(notes) or 'it is empty'}. Name a job's folder or a log."
        )
    return judge(lines, notes)


def main() -> int:
    """Runs the command. Returns 0 when the cause is known, 1 when it is not, 2 when there is nothing to read."""
    parser = argparse.ArgumentParser(prog="python -m helpers.doctor", description="Why did this server fail?")
    parser.add_argument("target", metavar="JOB_DIR|LOGFILE|-")
    parser.add_argument("--brief", action="store_true", help="one line: the cause and the mend")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    try:
        diagnosis = look(options.target)
    except NothingToReadError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(diagnosis), indent=1))
    elif options.brief:
        print(diagnosis, file=sys.stdout if diagnosis.known else sys.stderr)
    else:
        print(report(diagnosis))
    return 0 if diagnosis.known else 1


if __name__ == "__main__":
    sys.exit(main())
