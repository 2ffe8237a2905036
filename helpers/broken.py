"""Deployments that fail on purpose, for lesson 09: make them fail, read their logs, draw how far they came.

Nothing is played: `attempt` and `serve` start vLLM on this machine. What cannot fail on a laptop (several nodes, GPUs)
stands as recorded logs in helpers/data/broken; the README there says how each of them was made.
"""

import atexit
import html
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai
import pandas as pd
import psutil
from openai import OpenAI

from helpers import doctor, queue
from helpers.client import explain
from helpers.doctor import Diagnosis
from helpers.errors import WorkshopError
from helpers.log_lines import ESCAPES, Line, lines_of, redact
from helpers.server import Server, ServerError, start
from helpers.tiny import MODEL_DIR

RECORDED = Path(__file__).parent / "data" / "broken"
PREFIX = re.compile(r"\((?:Vllm)?(?P<process>\w+?)(?:-\d+)? pid=\d+[^)]*\) *(?P<level>[A-Z]+)?")
TIME = re.compile(r"(?:^|[ T])(\d\d:\d\d:\d\d)(?=[ \]]|$)")
SAYS_ERROR = r"|Value error,|died unexpectedly \(exit code: -|^(?:srun: error|slurmstepd.*: error|failed: )"
NAMES_ERROR = re.compile(doctor.ERROR.pattern + SAYS_ERROR)
PACKAGES = re.compile(r"/\S*/site-packages/")  # where they lie differs between machines
FAREWELL = re.compile("resource_tracker|warnings.warn")
COLOURS = {"error": "#b3261e", "warning": "#8a5a00", "info": "#6b7075"}


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a log: who wrote it, when, and whether it is information, a warning or belongs to an error."""

    line: Line
    process: str
    level: str
    time: str
    kind: str

    @property
    def is_error(self) -> bool:
        """It names an error; a traceback's source lines, warnings and Python's farewells do not."""
        return not self.line.harmless and bool(NAMES_ERROR.search(self.line.text))


class Extract:
    """Some lines of a log. `numbered`: with their places in it."""

    def __init__(self, rows: Iterable[Row], numbered: bool):
        self.rows, self.numbered = list(rows), numbered
        self._process = max((len(row.process) for row in self.rows), default=0)  # widths of the columns
        self._level = max((len(row.level) for row in self.rows), default=0)

    def _line(self, row: Row) -> str:
        text = PACKAGES.sub("…/", redact(row.line.text))
        cells = [(f"{row.line.number:>4}", 4 * self.numbered), (row.process, self._process), (row.level, self._level)]
        return ("".join(f"{cell:<{width}}  " for cell, width in cells if width) + text).rstrip()

    def __repr__(self) -> str:
        return "\n".join(map(self._line, self.rows)) or "(no such line)"

    def _repr_html_(self) -> str:
        style = "white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; line-height: 1.45; padding-left: 4em; text-indent: -4em"
        lines = (
            f"<div style='color: {COLOURS[row.kind]}; {style}'>{html.escape(self._line(row))}</div>"
            for row in self.rows
        )
        return f"<div style='font-family: monospace'>{''.join(lines) or '(no such line)'}</div>"


@dataclass(frozen=True)
class Log:
    """A log, read as in a terminal: `tail`, `grep`, `errors` and `lines` show parts of it, `doctor` says what it thinks.

    `live`: written just now on this machine, so that its line numbers say nothing to others.
    """

    name: str
    text: str
    live: bool = False

    @cached_property
    def rows(self) -> list[Row]:
        """Its lines, those that are not empty."""
        raw, rows, traceback = [ESCAPES.sub("", line) for line in self.text.split("\n")], [], False
        for line in lines_of(self.text, self.name):
            prefix, moment = PREFIX.match(raw[line.number - 1]), TIME.search(raw[line.number - 1][:90])
            level = (prefix and prefix["level"]) or ""
            traceback = line.text.startswith("Traceback") or (traceback and line.text.startswith(" "))
            is_error = level == "ERROR" or traceback or (NAMES_ERROR.search(line.text) and not line.harmless)
            kind = "error" if is_error else "warning" if level == "WARNING" else "info"
            rows.append(Row(line, prefix["process"] if prefix else "", level, moment[1] if moment else "", kind))
        return rows

    def _extract(self, rows: Iterable[Row]) -> Extract:
        return Extract(rows, numbered=not self.live)

    def tail(self, count: int = 5) -> Extract:
        """The last lines, as `tail -n 5`; warnings of Python's own clean-up are left out."""
        rows = [row for row in self.rows if not FAREWELL.search(row.line.text)]
        return self._extract(rows[-count:])

    def lines(self, first: int, last: int) -> Extract:
        """From one line to another, as `sed -n 40,60p`."""
        return self._extract(row for row in self.rows if first <= row.line.number <= last)

    def grep(self, pattern: str, most: int | None = None) -> Extract:
        """Lines with this in them, the first `most` if a number is given, as `grep -nE -m MOST PATTERN`."""
        return self._extract([row for row in self.rows if re.search(pattern, row.line.text)][:most])

    def errors(self) -> Extract:
        """Lines that name an error, without warnings and source code."""
        return self._extract(row for row in self.rows if row.is_error)

    @property
    def diagnosis(self) -> Diagnosis:
        """What the doctor thinks of its lines."""
        return doctor.judge([row.line for row in self.rows])

    def doctor(self) -> None:
        """Print what `python -m helpers.doctor LOG` prints."""
        _print(self.diagnosis, self.live)


@dataclass(frozen=True)
class Job:
    """The folder a Slurm job leaves, and Slurm's own log of it: a Log for each file, by its name."""

    folder: Path

    @cached_property
    def logs(self) -> dict[str, Log]:
        """Its files by their names, in the order in which one reads them."""
        order = ["outcome", "launcher.log", "rank-0.log", "rank-1.log", "slurm.log"]
        paths = [path for name in order if (path := self.folder / name).exists()]
        return {path.name: _read(path) for path in paths}

    def __getitem__(self, name: str) -> Log:
        return self.logs[name]

    @property
    def state(self) -> str:
        """What `scontrol show job` said of it at its end."""
        return " ".join(re.findall(r"(?:JobState|Reason)=\S+", (self.folder / "scontrol").read_text()))

    @property
    def diagnosis(self) -> Diagnosis:
        """What the doctor thinks of all of them together."""
        return doctor.examine(self.folder, slurm_log=self.folder / "slurm.log", state=self.state)

    def doctor(self) -> None:
        """Print what `python -m helpers.slurm doctor JOB` prints."""
        _print(self.diagnosis, live=False)


def _print(diagnosis: Diagnosis, live: bool) -> None:
    text = doctor.report(diagnosis)
    print(text.replace(f"{diagnosis.where}\n{'':<10}", "") if live else text)


def recorded(name: str) -> Log:
    """A log of helpers/data/broken."""
    return _read(RECORDED / f"{name}.log")


def job(name: str) -> Job:
    """A job of helpers/data/broken."""
    return Job(RECORDED / name)


def speeds() -> pd.DataFrame:
    """Output tokens per second of the servers of nccl-direct.log and nccl-tcp.log, three requests one after another."""
    measured = json.loads((RECORDED / "nccl.json").read_text())
    rows = [measured[way] for way in ("direct", "tcp")]
    return pd.DataFrame(rows, ["direct", "tcp"], [f"request {n}" for n in (1, 2, 3)])


# --- breaking ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What came of starting a server: `sentence` says it in the words of the tools; no `log` where vLLM never ran."""

    answers: bool
    sentence: str
    log: Log | None = None

    def __repr__(self) -> str:
        if self.answers:
            return "It answers."
        return "It did not come up." if self.log else "vLLM was not even started."


def attempt(*flags: str, model: Path | str = MODEL_DIR, port: int | None = None) -> Attempt:
    """Start a server with vLLM's flags and, should it come up, stop it again. `model` is a folder; a free port by default."""
    try:
        with start(model, port=port, flags=flags, quiet=True) as server:
            return Attempt(True, "The server answers.", _read(server.connection.log, live=True))
    except ServerError as error:
        sentence, _, log = str(error).partition(" Log: ")
        return Attempt(False, sentence, _read(log, live=True) if log else None)


def _read(path: Path | str, live: bool = False) -> Log:
    """Bytes, not text: a carriage return in a progress bar begins no line."""
    return Log(Path(path).name, Path(path).read_bytes().decode(errors="replace"), live)


def serve(*flags: str, model: Path | str = MODEL_DIR) -> Server:
    """A server of one's own to harm; it lives no longer than the notebook. Raises ServerError when it does not come up."""
    return start(model, flags=flags, quiet=True)


def ask(server: Server, prompt: str = "The capital of France is") -> str:
    """The answer of that server, or what the client makes of its silence."""
    connection = server.connection
    client = OpenAI(base_url=connection.base_url, api_key=connection.api_key, max_retries=0, timeout=60)
    try:
        reply = client.completions.create(model=connection.model, prompt=prompt, max_tokens=8, temperature=0)
    except openai.APIError as error:
        return explain(error)
    return prompt + reply.choices[0].text


def kill(server: Server, title: str) -> Log:
    """`kill -9` of the server's process with that title, as the kernel does it when memory runs out; then its log.

    Raises WorkshopError when there is no such process.
    """
    for process in psutil.Process(server.keeper.pid).children(recursive=True):
        if title in " ".join(process.cmdline()):
            process.kill()
            break
    else:
        raise WorkshopError(f"The server has no process {title}: it has ended already. Start another with `serve`.")
    server.keeper.wait(60)
    return _read(server.connection.log, live=True)


def listening(port: int) -> socket.socket | None:
    """A program that listens on this port; None when another one does already."""
    with suppress(OSError):
        return socket.create_server(("127.0.0.1", port))
    return None


def cut_short(size: int = 9_000_000) -> Path:
    """A copy of the small Llama whose download stopped: its weights end after so many bytes."""
    scratch = tempfile.mkdtemp(prefix="broken-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = shutil.copytree(MODEL_DIR, Path(scratch) / "llama-cut-short")
    os.truncate(folder / "model.safetensors", size)
    return folder


# --- on a cluster --------------------------------------------------------------------------------------------------


def on_slurm(submit: bool, **variables: str) -> None:
    """Submit a deployment of the small Llama that fails, wait for its end, and print the doctor's report.

    Without Slurm, or with submit=False, say what would happen.
    """
    from helpers import slurm

    options = "".join(f" --set {name}={value}" for name, value in variables.items())
    shown = f"python -m helpers.slurm submit any-model --small --no-preflight{options}"
    if not submit or not queue.is_here():
        why = "SUBMIT is False" if not submit else "there is no Slurm here"
        print(f"Nothing is submitted: {why}. This is the command; its job fails within a minute or two:\n  {shown}")
        return
    failed = slurm.wait(slurm.submit("any-model", small=True, check=False, variables=variables), on_status=print)
    _print(slurm.doctor(failed.job), live=False)
