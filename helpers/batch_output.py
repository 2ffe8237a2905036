"""What a batch writes: answers, errors and a manifest, so that a run that ends in any way can be continued.

    answers.jsonl                  a line for every answered request, added as the answers come
    answers.errors.jsonl           a line for every request that failed in the last run; the next run asks them again
    answers.manifest.json          what was asked of which model, and how far it came

Each line goes to the operating system at once, which keeps it when this process is killed. It is forced to the disk
(fsync) every five seconds and at the end; should the machine itself fail, the answers of the last seconds are asked again.
"""

import errno
import fcntl
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.batch_files import LineError
from helpers.errors import WorkshopError

PREFIX = "batch_req_"  # and the line of the input: a resumed run knows by it what is done, in one byte a line


class OutputError(WorkshopError):
    """An output that cannot be written or continued."""


class FullError(OutputError):
    """The disk or a quota is full. What was written before is whole."""


@dataclass(frozen=True)
class Answer:
    """A request that was answered: the body as the OpenAI API has it."""

    line: int
    custom_id: str
    body: dict[str, Any]

    @property
    def output_tokens(self) -> int:
        """Tokens written, as the body's `usage` counts them; 0 where it does not."""
        return (self.body.get("usage") or {}).get("completion_tokens") or 0


def errors_path(output: Path) -> Path:
    """answers.jsonl -> answers.errors.jsonl."""
    return output.with_suffix(f".errors{output.suffix}")


def manifest_path(output: Path) -> Path:
    """answers.jsonl -> answers.manifest.json."""
    return output.with_suffix(".manifest.json")


def read_manifest(output: Path) -> dict[str, Any] | None:
    """The manifest beside this output; None where there is none. Raises OutputError for one that is damaged."""
    try:
        manifest: dict[str, Any] = json.loads(manifest_path(output).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise OutputError(f"{manifest_path(output)} is damaged. Move it and {output} away to begin anew.") from None
    return manifest


def write_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all, and on the disk before it takes its name. Raises OutputError."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(draft, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _explained(error, path) from None


class Results:
    """The output of one run, locked against a second one, cleaned of a half-written end, and open for more.

    `errors` counts those of this run. Raises OutputError when another run has the lock (unless told to `wait`), or the
    file cannot be written.
    """

    def __init__(self, path: Path | str, *, wait: bool = False):
        self.path = Path(path)
        self.errors = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _explained(error, self.path) from None
        self._errors: Any = None
        try:
            self._lock(wait)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, wait: bool) -> None:
        """A lock of this process alone: it goes with us, however we end, and no child of ours keeps it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            run = ((read_manifest(self.path) or {}).get("runs") or [{}])[-1]
            who = f" (process {run['pid']} on {run['host']}, since {run['began']})" if "pid" in run else ""
            raise OutputError(
                f"Another run is writing {self.path}{who}. Wait for it, or name another output."
            ) from None
        except OSError:  # a file system without locks
            print(f"{self.path} is on a file system without locks: see to it that only one run writes it.")

    def recover(self, lines: int) -> bytearray:
        """What is done: one byte for each line of an input of so many lines, 1 where it is. A half-written end is cut off.

        Raises OutputError for a line within that is none of ours, and for two answers to the same line.
        """
        done, good, bad = bytearray(lines + 1), 0, 0
        self._file.seek(0)
        reader = io.BufferedReader(self._file)
        for number, raw in enumerate(reader, 1):
            line = line_of(_read(raw))
            if line is None or line > lines:
                bad = bad or number
            elif bad:
                raise OutputError(f"Line {bad} of {self.path} is none of ours. Move the file away, or mend it.")
            elif done[line]:
                raise OutputError(f"{self.path} has an answer to line {line} of the input twice. Move the file away.")
            else:
                done[line] = 1
                good += len(raw)
        reader.detach()  # closing it, or a copy of it, would give up the lock
        self._file.truncate(good)
        return done

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers, whole lines or nothing. Raises FullError when there is no room."""
        self._append(self._file, self.path, [_line(answer) for answer in answers])

    def add_errors(self, errors: Iterable[LineError]) -> None:
        """Append to the errors of this run, after `forget_errors`."""
        lines = [_error_line(error) for error in errors]
        self._append(self._errors, errors_path(self.path), lines)
        self.errors += len(lines)

    def forget_errors(self) -> None:
        """Errors of earlier runs go: their lines are about to be asked again. Raises OutputError."""
        try:
            self._errors = open(errors_path(self.path), "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _explained(error, errors_path(self.path)) from None

    def copy(self, files: Iterable[tuple[Path, Path]]) -> None:
        """Instead of what is there: everything that these outputs and their errors hold. Raises OutputError."""
        self.forget_errors()
        self._file.truncate(0)
        for answers, errors in files:
            with open(answers, "rb") as source:
                while lines := source.readlines(2**24):
                    self._append(self._file, self.path, lines)
            with suppress(FileNotFoundError), open(errors, "rb") as source:
                for line in source:
                    self._append(self._errors, errors_path(self.path), [line])
                    self.errors += 1

    def _append(self, file: Any, path: Path, lines: list[bytes]) -> None:
        if not lines:
            return
        data, begin = memoryview(b"".join(lines)), file.seek(0, os.SEEK_END)
        try:
            while data:  # a disk that gets full takes a part first
                data = data[file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(begin)
            raise _explained(error, path) from None

    def sync(self) -> None:
        """Onto the disk. A network file system may say only here that it is full: raises FullError."""
        try:
            for file in filter(None, (self._file, self._errors)):
                os.fsync(file.fileno())
        except OSError as error:
            raise _explained(error, self.path) from None

    def close(self) -> None:
        """Close the files, which gives up the lock; an empty file of errors is removed."""
        for file in filter(None, (self._errors, self._file)):
            file.close()
        if self._errors is not None and not self.errors:
            errors_path(self.path).unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"No room for {path} ({error.strerror}): free some.")
    return OutputError(f"{path} cannot be written ({error.strerror}). Name an output that can.")


def line_of(result: Any) -> int | None:
    """The line of the input that a result answers; None for a result that is none of ours."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        if result["id"].startswith(PREFIX) and "custom_id" in result:
            return int(result["id"].removeprefix(PREFIX))
    return None


def _read(raw: bytes) -> Any:
    """A whole line of JSON; None for anything else."""
    with suppress(ValueError):
        return json.loads(raw) if raw.endswith(b"\n") else None
    return None


def _line(answer: Answer) -> bytes:
    response = {"status_code": 200, "request_id": answer.body.get("id") or uuid.uuid4().hex, "body": answer.body}
    return _json({"id": f"{PREFIX}{answer.line}", "custom_id": answer.custom_id, "response": response, "error": None})


def _error_line(error: LineError) -> bytes:
    said = {"code": error.code, "message": error.message, "line": error.line}
    name = f"{PREFIX}{error.line}"
    return _json({"id": name, "custom_id": error.custom_id, "response": error.response, "error": said})


def _json(data: dict[str, Any]) -> bytes:
    """A line of JSON. Half a surrogate pair, which UTF-8 cannot hold, stays as the escape it was."""
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of an output or of its errors, in the order in which they came."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
