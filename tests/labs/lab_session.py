"""Runs a lab's commands as a learner would: one shell from the first block to the last, which stops at the first error."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from lab_text import Block

MARK = "WORKSHOP_LAB_RUN"  # in the environment of everything that a lab starts, its jobs included
BEGIN = "=-=-= block {number} at {now} ="
BLOCK = re.compile(r"^=-=-= block (\d+) at ([\d.]+) =$", re.MULTILINE)


@dataclass
class Ran:
    """What became of a block: its output, and how many seconds it took."""

    block: Block
    output: str
    seconds: float


class BlockError(AssertionError):
    """A block that failed, with the end of what it said."""


def script(blocks: list[Block]) -> str:
    """One bash script of all blocks. The shell ends at the first command that fails, where a block is not to fail."""
    parts = ["set -e -o pipefail"]
    for number, block in enumerate(blocks):
        parts.append(f'echo; echo "{BEGIN.format(number=number, now="$EPOCHREALTIME")}"')
        if block.status:
            parts += ["set +e", block.code, "workshop_status=$?", "set -e"]
            parts += [f'[[ $workshop_status == {block.status} ]] || {{ echo "exit status $workshop_status"; exit 1; }}']
        else:
            parts.append(block.code)
    parts.append(f'echo; echo "{BEGIN.format(number=len(blocks), now="$EPOCHREALTIME")}"')
    return "\n".join(parts) + "\n"


def run(blocks: list[Block], folder: Path, env: dict[str, str], timeout: float) -> list[Ran]:
    """Run all blocks in `folder`. Raises BlockError for the first that fails or takes too long, and shows it."""
    blocks = [block for block in blocks if block.not_run is None]
    file, log = folder.parent / f"{folder.name}.sh", folder.parent / f"{folder.name}.out"
    file.write_text(script(blocks))
    with open(log, "w") as out:
        shell = subprocess.Popen(
            ["bash", str(file)], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = shell.wait(timeout)
        except BaseException as error:  # Ctrl-C as well: it must not go on and submit jobs
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            status = None
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    text = log.read_text(errors="replace")
    ran = _parse(text, blocks)
    if status != 0 or f"=-=-= block {len(blocks)} at" not in text:
        last = ran[-1]
        why = f"took more than {timeout} s" if status is None else f"failed (status {status})"
        raise BlockError(
            f"the block at line {last.block.line} {why}:\n{last.block.code}\n--- it said\n{last.output[-4000:]}"
        )
    return ran


def _parse(text: str, blocks: list[Block]) -> list[Ran]:
    marks = list(BLOCK.finditer(text))
    ends = [*marks[1:], None]
    ran = []
    for mark, end in zip(marks, ends, strict=True):
        if int(mark[1]) == len(blocks):
            break
        output = text[mark.end() : end.start() if end else len(text)]
        ran.append(Ran(blocks[int(mark[1])], output, (float(end[2]) if end else time.time()) - float(mark[2])))
    return ran


def promises_broken(ran: list[Ran]) -> list[str]:
    """What the text shows and the real output does not hold."""
    return [
        f"line {output.line}: {said}\n--- the real output\n{one.output[-3000:]}"
        for one in ran
        for output in one.block.outputs
        for said in output.broken(one.output)
    ]


def processes(value: str) -> list[psutil.Process]:
    """Everything alive that carries the mark of this run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
