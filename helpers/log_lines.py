"""Read logs of any size as lines that can be judged: without colours, prefixes and keys. Standard library only."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Of a log we read this many bytes at its start and at its end: a failure to start stands in the first, others in the last.
HEAD, TAIL = 1 << 20, 4 << 20
LONGEST_LINE = 4000  # characters; of a longer line, half from each end
LONGEST_EVIDENCE = 500  # characters of a line that are shown
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b-\x1f\x7f]")
PREFIX = re.compile(
    r"\([\w -]*pid=\d+[^)]*\) ?|\[rank\d+\]: ?|\d\d:\d\d:\d\d "
    r"|(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d [\d:]+(?: \[[^\]]*\] ?)?|:? +)"
)
#: Warnings, NCCL's talk, and in a traceback the source code (but not its `File` lines, which name functions).
HARMLESS = re.compile(
    r"\[?W\d{3,4} \d\d:|.*(?:\w+Warning: |NCCL INFO)|\[(?:INFO|WARN)| {2,}(?!Value error,|File \"| *\S+: error)"
)
SECRETS = [
    (re.compile(r"(Bearer\s+|Authorization: )[^\s'\",]+(?: [^\s'\",]+)?"), r"\1***"),
    (re.compile(r"\b(hf_|sk-)[\w-]{6,}"), r"\1***"),
    (re.compile(r"(?i)((?:api[-_]key|hf_token|hub_token)['\"]?(?:\s*[:=]\s*|\s+))(\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^\s,)}]+)"), r"\1***"),
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a log. `number` counts from 1; from the end and negative, where the middle of a long log was not read."""

    file: str
    number: int
    text: str
    harmless: bool = False  # information, a warning, or source code in a traceback

    @property
    def shown(self) -> str:
        """The line for people: without keys, cut to LONGEST_EVIDENCE characters."""
        text = redact(self.text.strip())
        return text if len(text) <= LONGEST_EVIDENCE else text[:LONGEST_EVIDENCE] + " ..."

    @property
    def where(self) -> str:
        """Its file and line, as in "rank-0.log:12"."""
        return f"{self.file}:{self.number}" if self.number > 0 else f"{self.file}, line {-self.number} from its end"


def redact(text: str) -> str:
    """The text without API keys and tokens."""
    for secret, instead in SECRETS:
        text = secret.sub(instead, text)
    return text


def clean(raw: str) -> tuple[str, bool]:
    """A log line without colours, progress bars' earlier states and prefixes; and whether it is harmless."""
    if len(raw) > LONGEST_LINE:
        raw = f"{raw[: LONGEST_LINE // 2]} ... {raw[-LONGEST_LINE // 2 :]}"
    text, harmless = ESCAPES.sub("", raw.rstrip().rsplit("\r", 1)[-1]), False
    while match := PREFIX.match(text):
        harmless |= match["level"] in ("DEBUG", "INFO", "WARNING")
        text = text[match.end() :]
    return text, "exited unexpectedly" not in text and (harmless or bool(HARMLESS.match(text)))


def lines_of(text: str, file: str, first: int = 1) -> list[Line]:
    """The lines of a log's text that are not blank; `first` is the number of the first of all."""
    return [Line(file, number, *clean(raw)) for number, raw in enumerate(text.split("\n"), first) if raw.strip()]


def read_stream(stream: BinaryIO, name: str) -> tuple[list[Line], list[str]]:
    """The lines of a log, at most HEAD bytes of its start and TAIL of its end; and a note if the middle is left out."""
    head, tail, cut = stream.read(HEAD), b"", False
    if stream.seekable():
        start = max(HEAD, stream.seek(0, 2) - TAIL)
        cut = start > HEAD
        stream.seek(start)
        tail = stream.read(TAIL)
    else:
        while chunk := stream.read(TAIL):
            tail, cut = (tail + chunk)[-TAIL:], cut or len(tail) + len(chunk) > TAIL
    if not cut:
        return lines_of((head + tail).decode(errors="replace"), name), []
    last = tail.decode(errors="replace").split("\n", 1)[-1].rstrip("\n")
    lines = lines_of(head.decode(errors="replace"), name)
    lines += lines_of(last, name, first=-(last.count("\n") + 1))
    return lines, [f"{name} is long: only its first {HEAD >> 20} and last {TAIL >> 20} MiB were read"]


def read_files(paths: Iterable[Path]) -> tuple[dict[str, list[Line]], list[str]]:
    """The lines of each file that can be read, by its name; and a note for each that cannot."""
    logs, notes = {}, []
    for path in paths:
        try:
            with path.open("rb") as stream:
                logs[path.name], more = read_stream(stream, path.name)
                notes += more
        except OSError as error:
            notes.append(f"{path.name} cannot be read: {error.strerror}")
    return logs, notes
