"""What a batch is, and how far it came: the manifest by which a run knows whether it may go on where another stopped."""

import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.batch_files import Input
from helpers.batch_output import Results, manifest_path, read_manifest, write_whole
from helpers.errors import WorkshopError

COMPLETE, RUNNING, STOPPED = "complete", "running", "stopped"


class BatchError(WorkshopError):
    """A batch that cannot be begun or continued as it was asked for."""


class StoppedError(WorkshopError):
    """A run that ended before its last line. What it has answered is safe; the same command goes on."""


@dataclass
class Counts:
    """How far a run is. `lines` are all that the batch is to answer, `before` those that earlier runs have answered."""

    lines: int = 0
    before: int = 0
    answered: int = 0
    errors: int = 0
    output_tokens: int = 0
    seconds: float = 0.0  # since the first request was handed over

    @property
    def left(self) -> int:
        """Lines that have neither an answer nor an error yet."""
        return self.lines - self.before - self.answered - self.errors

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second of this run, 0 before it has begun."""
        return self.output_tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last line, by this run's pace; None before anything is done."""
        done = self.answered + self.errors
        return self.left * self.seconds / done if done else None


@dataclass(frozen=True)
class Shard:
    """Every `count`-th line, beginning with line `index` + 1: a part for one job of an array."""

    index: int = 0
    count: int = 1

    def has(self, line: int) -> bool:
        """Whether this line, counted from 1, is one of its own."""
        return (line - 1) % self.count == self.index

    def part_of(self, output: Path) -> Path:
        """The file of this shard's answers, beside the one that they are merged into."""
        return output if self.count == 1 else output.with_suffix(f".{self.index}-of-{self.count}{output.suffix}")


@dataclass
class Job:
    """A file of requests and where its answers go; its manifest belongs to whoever holds the output's lock."""

    source: Input
    output: Path
    shard: Shard = field(default_factory=Shard)
    manifest: dict[str, Any] = field(default_factory=dict)

    def begin(self, results: Results) -> None:
        """Find out whether this output is ours to go on with. Raises BatchError, which says what differs."""
        now = {
            "bytes": self.source.bytes,
            "sha256": self.source.digest(),
            "shard": asdict(self.shard),
            "defaults": asdict(self.source.defaults),
        }
        found = read_manifest(self.output)
        if found is None:
            if results.path.stat().st_size:
                raise BatchError(f"{self.output} is there and has no manifest. Move it away, or name another output.")
            found = {"input": str(self.source.path.resolve()), "format": self.source.format, **now, "runs": []}
        elif found["sha256"] != now["sha256"]:
            raise BatchError(f"{self._what_changed(found)} Restore it, or name another output for what it is now.")
        for name in ("shard", "defaults"):
            if found[name] != now[name]:
                raise BatchError(
                    f"{self.output} was begun with {name} {found[name]}, not {now[name]}. "
                    "Use the same, or name another output."
                )
        self.manifest = found

    def _what_changed(self, manifest: dict[str, Any]) -> str:
        was, now = manifest["bytes"], self.source.bytes
        since = f"{self.source.path} is not what it was when {self.output} was begun:"
        if now > was and self.source.digest(was) == manifest["sha256"]:
            return f"{since} {now - was:,} bytes were added at its end."
        return f"{since} it had {was:,} bytes and has {now:,}." if was != now else f"{since} its text differs."

    def check_unchanged(self) -> None:
        """After the last line: was the file the same all the time? Raises BatchError."""
        if self.source.path.stat().st_size != self.manifest["bytes"] or self.source.digest() != self.manifest["sha256"]:
            raise BatchError(
                f"{self.source.path} was changed while it was being answered. Restore it, and begin a new output."
            )

    def add_run(self) -> None:
        """Enter a run of this process, on this host, into the manifest."""
        who = {"host": socket.gethostname(), "pid": os.getpid(), "python": platform.python_version()}
        self.manifest["runs"].append({"began": _now(), **who})

    def note(self, **facts: Any) -> None:
        """Facts on the run at hand, such as its engine's."""
        self.manifest["runs"][-1].update(facts)

    def begun_with(self, model: str) -> None:
        """Raises BatchError when the answers so far come from another model."""
        if self.manifest.setdefault("model", model) != model:
            raise BatchError(
                f"{self.output} was begun with {self.manifest['model']}, and this is {model}. "
                "Ask the same model, or name another output."
            )

    def save(self, state: str, counts: Counts) -> None:
        """Write the manifest: the state of the batch, its counts, and those of the run at hand."""
        self.note(
            answered=counts.answered, errors=counts.errors, output_tokens=counts.output_tokens,
            seconds=round(counts.seconds, 3), **({} if state == RUNNING else {"ended": _now()}),
        )  # fmt: skip
        answered = counts.before + counts.answered
        self.manifest |= {"state": state, "lines": counts.lines, "answered": answered, "errors": counts.errors}
        write_whole(manifest_path(self.output), json.dumps(self.manifest, indent=1) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
