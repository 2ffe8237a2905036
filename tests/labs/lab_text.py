"""A lab as its test sees it: the commands a learner types, and what the text promises of their output.

Marks are HTML comments, so that a reader of the page does not see them. Above a block of commands (```bash):

    <!-- not run: REASON -->         it cannot be run on the test cluster
    <!-- exits: N -->                its last command is to end with this status; else every command is to succeed

Above a block of output (```text), which belongs to the commands before it; one or more of:

    <!-- output contains: WORDS -->  both the block and the real output hold these words
    <!-- output matches: REGEX -->   both match
    <!-- output as it is -->         every line of the block stands in the real output
    <!-- not checked: REASON -->     the block comes from another machine
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
MARK = re.compile(
    r"^ *<!-- *(not run|exits|output contains|output matches|output as it is|not checked)(?:: *(.*?))? *-->$"
)
SHELL = ("bash", "sh", "shell", "console")


class LabError(Exception):
    """A lab whose marks are wrong."""


@dataclass
class Output:
    """A block of output in the text, and its marks."""

    line: int
    text: str
    marks: list[tuple[str, str]]

    def broken(self, real: str) -> list[str]:
        """Promises that the real output does not keep. Blanks count once: tables are as wide as the terminal."""
        text = _squeeze(real)
        kinds = {
            "output contains": lambda words: _squeeze(words) in text,
            "output matches": lambda regex: re.search(regex, real, re.MULTILINE) is not None,
            "output as it is": lambda _: all(_squeeze(line) in text for line in self.text.splitlines()),
            "not checked": lambda _: True,
        }
        return [f"{kind}: {value}".rstrip(": ") for kind, value in self.marks if not kinds[kind](value)]


@dataclass
class Block:
    """A block of commands, and the outputs promised below it."""

    line: int
    code: str
    status: int = 0
    not_run: str | None = None
    outputs: list[Output] = field(default_factory=list)


def read(path: Path) -> list[Block]:
    """The blocks of commands of a lab, in order. Raises LabError where a mark is missing, empty or out of place."""
    blocks, marks = [], []
    lines = iter(enumerate(path.read_text().splitlines(), 1))
    for number, line in lines:
        if mark := MARK.match(line):
            marks.append((mark[1], mark[2] or ""))
        elif fence := FENCE.match(line):
            body = "\n".join(_body(lines, fence))
            place, language = f"{path.name}:{number}", fence[3].split()[0] if fence[3].split() else ""
            if language in SHELL:
                blocks.append(_block(place, number, body, marks))
            elif language == "text":
                if not blocks:
                    raise LabError(f"{place}: output before any command")
                blocks[-1].outputs.append(_output(place, number, body, marks))
            elif marks:
                raise LabError(f"{place}: a mark above a block of {language or 'no language'}")
            marks = []
        elif line.strip() and marks:
            raise LabError(f"{path.name}:{number}: a mark with no block below it")
    return blocks


def _body(lines, fence):
    for _, line in lines:
        if line.strip() == fence[2]:
            return
        yield line.removeprefix(fence[1])


def _block(place: str, number: int, body: str, marks: list[tuple[str, str]]) -> Block:
    given = dict(marks)
    if strange := given.keys() - {"not run", "exits"}:
        raise LabError(f"{place}: {strange.pop()!r} stands above commands")
    if "not run" in given and len(given["not run"].split()) < 3:
        raise LabError(f"{place}: not run, and no reason is given")
    return Block(number, body, int(given.get("exits", "0")), given.get("not run"))


def _output(place: str, number: int, body: str, marks: list[tuple[str, str]]) -> Output:
    if not marks or any(kind in ("not run", "exits") for kind, _ in marks):
        raise LabError(f"{place}: a block of output needs a mark that says what it promises")
    if any(not value for kind, value in marks if kind != "output as it is"):
        raise LabError(f"{place}: a mark without words")
    output = Output(number, body, marks)
    if said := output.broken(body):
        raise LabError(f"{place}: the block itself does not keep {said}")
    return output


def _squeeze(text: str) -> str:
    return " ".join(text.split())
