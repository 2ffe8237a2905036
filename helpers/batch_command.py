"""The command `python -m helpers.batch`: answer a file of requests, and put the parts of an array of jobs together.

Exit status of `run` and `merge`: 0 every line is answered; 1 all were asked, some have errors (they stand in the errors
file); 2 it was refused, or vLLM did not start: nothing was asked; 3 it ended early, the same command goes on.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import batch, batch_merge
from helpers.batch_files import CHAT, COMPLETIONS, MAX_LINE, MIB, Defaults
from helpers.batch_job import Counts, Shard, StoppedError
from helpers.batch_output import errors_path
from helpers.batch_vllm import EngineError, InProcess
from helpers.errors import WorkshopError
from helpers.tiny import MODEL_DIR

ALL_WELL, SOME_ERRORS, REFUSED, STOPPED_EARLY = range(4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    options.flags = [flag for flag in flags if flag != "--"]
    if options.flags and (options.run is not _run or options.server):
        parser.error(f"unknown: {' '.join(options.flags)} (flags of vLLM go with a model in process)")
    try:
        status: int = options.run(options)
        return status
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return STOPPED_EARLY
    except WorkshopError as error:
        print(f"{'failed' if isinstance(error, EngineError) else 'refused'}: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    defaults = Defaults(
        url=COMPLETIONS if options.completions else CHAT, column=options.column, body=options.body, seed=options.seed
    )
    progress = Progress(options.quiet)
    with _stopping() as stop:
        counts = batch.run(
            options.requests, options.output, lambda: stop.unless_told(lambda: _engine(options)), defaults=defaults,
            shard=options.shard, max_line=int(options.max_line * MIB), progress=progress, stop=stop.event,
        )  # fmt: skip
    progress.end()
    return _report(options.shard.part_of(options.output), counts)


def _engine(options: argparse.Namespace) -> batch.Engine:
    if options.server:
        from helpers.batch_server import AtServer

        return AtServer(threads=options.threads, timeout=options.timeout)
    return InProcess.start(options.model or MODEL_DIR, options.flags)


def _merge(options: argparse.Namespace) -> int:
    missing = batch_merge.missing(options.output)
    if missing:
        sentence = f"Not merged yet: {', '.join(missing)}."
        if not options.when_complete:
            raise StoppedError(sentence)
        print(sentence)
        return ALL_WELL
    return _report(options.output, batch_merge.merge(options.output))


def _report(output: Path, counts: Counts) -> int:
    before = f" ({counts.before:,} of them before)" if counts.before and counts.answered else ""
    pace = f", {counts.tokens_per_second:,.0f} output tokens/s" if counts.output_tokens and counts.seconds else ""
    print(f"{output}: {counts.before + counts.answered:,} of {counts.lines:,} lines are answered{before}{pace}.")
    if not counts.errors:
        return ALL_WELL
    print(
        f"{errors_path(output)}: {counts.errors:,} lines have errors. The same command asks them again.",
        file=sys.stderr,
    )
    return SOME_ERRORS


class Progress:
    """A line on how far it is: overwritten on a terminal, a new one every ten seconds in a log."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.terminal, self.said = quiet, sys.stderr.isatty(), time.monotonic()

    def __call__(self, counts: Counts) -> None:
        """Show these, unless the last ones are too fresh."""
        now = time.monotonic()
        if self.quiet or now - self.said < (0.5 if self.terminal else 10):
            return
        self.said = now
        if self.terminal:
            print(f"\r{describe(counts):<100}", end="", file=sys.stderr, flush=True)
        else:
            print(describe(counts), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line off the terminal."""
        if self.terminal and self.said:
            print(f"\r{'':<100}", end="\r", file=sys.stderr, flush=True)


def describe(counts: Counts) -> str:
    """`1,200 of 2,000 lines (60%), 3 errors, 812 tokens/s, 2 min 10 s left`"""
    done = counts.lines - counts.left
    parts = [f"{done:,} of {counts.lines:,} lines ({100 * done // max(counts.lines, 1)}%)"]
    parts += [f"{counts.errors:,} errors"] if counts.errors else []
    parts += [f"{counts.tokens_per_second:,.0f} tokens/s"] if counts.output_tokens else []
    parts += [f"{_duration(counts.seconds_left)} left"] if counts.seconds_left is not None else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class _Stop:
    """SIGTERM, SIGHUP and the first Ctrl-C end the run when what is answered is written; at once while a model loads."""

    def __init__(self) -> None:
        self.event, self.loading = threading.Event(), False

    def told(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
        if self.loading:
            raise StoppedError("Stopped as it was told to.")

    def unless_told(self, load: Callable[[], Any]) -> Any:
        self.loading = True
        try:
            return load()
        finally:
            self.loading = False


@contextmanager
def _stopping() -> Iterator[_Stop]:
    stop = _Stop()
    before = {one: signal.signal(one, stop.told) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _shard(text: str) -> Shard:
    index, count = (int(part) for part in text.split("/"))
    if not 0 <= index < count:
        raise ValueError
    return Shard(index, count)


def _json_object(text: str) -> dict[str, Any]:
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError
    return data


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="answer a file; what follows the options goes to vLLM", allow_abbrev=False)
    run.add_argument("requests", type=Path, help=".jsonl (OpenAI batch format, or prompts), .txt, .csv, .parquet")
    run.add_argument("output", type=Path, help="answers.jsonl; the same command again goes on where it stopped")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--model", default=None, help="folder or name, in this process (default: the small Llama)")
    where.add_argument("--server", action="store_true", help="ask the server at hand instead")
    run.add_argument("--completions", action="store_true", help="plain prompts are texts to continue, not chats")
    run.add_argument("--column", default="prompt", help="of a CSV or Parquet file (default: prompt)")
    run.add_argument(
        "--body", type=_json_object, default={}, help="""fields for lines without, as '{"max_tokens": 64}'"""
    )
    run.add_argument("--seed", type=int, help="give each line that samples a seed of its own, so that a run repeats")
    run.add_argument(
        "--shard", type=_shard, default=Shard(), help="2/8: only every 8th line, from the third (0 is the first)"
    )
    run.add_argument("--max-line", type=float, default=MAX_LINE / MIB, help="MiB that one line may have")
    run.add_argument("--threads", type=int, default=64, help="requests in flight at a server")
    run.add_argument("--timeout", type=float, default=600, help="seconds for one request to a server")
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.set_defaults(run=_run)
    merge = commands.add_parser("merge", help="put the parts of an array of jobs together")
    merge.add_argument("output", type=Path, help="as it was named in `run`")
    merge.add_argument(
        "--when-complete", action="store_true", help="do nothing, and be content, while parts are missing"
    )
    merge.set_defaults(run=_merge, server=False)
    return parser
