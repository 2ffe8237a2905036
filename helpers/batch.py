"""Answer a file of requests, so that nothing is lost and nothing is done twice.

    python -m helpers.batch run requests.jsonl answers.jsonl --model FOLDER     in process, with vllm.LLM
    python -m helpers.batch run requests.jsonl answers.jsonl --server           by the server at hand

However a run ends (kill -9, a full disk, the end of a job's time, a dead server), the same command goes on where it
stopped. Every custom_id ends up once, in the answers or in the errors; the errors of one run are asked again by the next.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from helpers.batch_files import MAX_LINE, Defaults, Input, LineError, Request
from helpers.batch_job import COMPLETE, RUNNING, STOPPED, Counts, Job, Shard, StoppedError
from helpers.batch_output import Answer, FullError, OutputError, Results, line_of, read_lines
from helpers.batch_survey import survey, unique

if TYPE_CHECKING:
    import pandas as pd

SYNC_SECONDS = 5


class Engine(Protocol):
    """What answers requests: `InProcess` of helpers.batch_vllm or `AtServer` of helpers.batch_server."""

    model: str  # as answers name it
    room: int  # how many requests it wants to have at a time

    def describe(self) -> dict[str, Any]:
        """For the manifest: which engine, flags, versions, seed."""

    def submit(self, request: Request) -> None:
        """Take a request. Raises LineError when it cannot be asked."""

    def finished(self) -> list[Answer | LineError]:
        """Those that are done by now; waits a moment when none is. Raises StoppedError when the engine is gone."""

    def abandon(self) -> None:
        """Give up what has been submitted and is not finished; none of it comes out later."""

    def close(self) -> None:
        """Give up everything and end."""


def run(
    requests: Path | str,
    output: Path | str,
    engine: Engine | Callable[[], Engine],
    *,
    defaults: Defaults | None = None,
    shard: Shard | None = None,
    max_line: int = MAX_LINE,
    progress: Callable[[Counts], None] = lambda counts: None,
    stop: threading.Event | None = None,
) -> Counts:
    """Answer every line of `requests` that `output` does not answer yet.

    `engine` may be a function that makes one: it is called when there is something to ask, and its engine is closed. A line
    of more than `max_line` bytes is an error. `progress` is told of the counts as answers come.
    `stop`, once set, ends the run after what has been answered by then is written. Raises BatchError when the batch is
    not the one that `output` was begun with, StoppedError when the run ends early, InputError and OutputError.
    """
    shard = shard or Shard()
    job = Job(Input(requests, defaults, max_line=max_line), shard.part_of(Path(output)), shard)
    with Results(job.output) as results:
        job.begin(results)
        found = survey(job.source, shard.has)
        job.manifest["last_line"] = found.last
        done = results.recover(found.last)
        results.forget_errors()
        todo = (
            item
            for item in unique(job.source.read(), found.suspects)
            if item.line <= found.last and shard.has(item.line) and not done[item.line]
        )
        counts = Counts(found.lines, sum(done))
        return _Run(job, results, counts, progress, stop or threading.Event()).ask(todo, engine)


class _Run:
    """From the first request that is handed over to the last answer that is written."""

    def __init__(
        self, job: Job, results: Results, counts: Counts, progress: Callable[[Counts], None], stop: threading.Event
    ):
        self.job, self.results, self.counts, self.progress, self.stop = job, results, counts, progress, stop
        self.engine: Engine | None = None
        self.waiting = 0  # requests that the engine has
        self.began, self.saved = 0.0, 0.0  # as time.monotonic()

    def ask(self, todo: Iterable[Request | LineError], engine: Engine | Callable[[], Engine]) -> Counts:
        self.job.add_run()
        try:
            self._save(RUNNING)
            for item in todo:
                self._take(item, engine)
            while self.waiting:
                self._collect()
            self.job.check_unchanged()
            self._save(COMPLETE)
        except BaseException as error:
            with suppress(OSError, OutputError):
                self.job.note(ended_by=str(error) or type(error).__name__)
                self._save(STOPPED)
            if isinstance(error, FullError | StoppedError):
                raise StoppedError(f"{error} {self._safe()}") from None
            raise
        finally:
            if self.engine:
                self.engine.close() if callable(engine) else self.engine.abandon()
        return self.counts

    def _take(self, item: Request | LineError, engine: Engine | Callable[[], Engine]) -> None:
        """Hand a request to the engine, once there is room for it; write a line that is none to the errors."""
        if isinstance(item, LineError):
            self._write([item])
            return
        running = self.engine or self._start(engine() if callable(engine) else engine)
        while self.waiting >= running.room:
            self._collect()
        try:
            running.submit(item)
            self.waiting += 1
        except LineError as error:
            error.line, error.custom_id = item.line, item.custom_id
            self._write([error])

    def _start(self, engine: Engine) -> Engine:
        self.engine = engine
        self.job.begun_with(engine.model)
        self.job.note(**engine.describe())
        self._save(RUNNING)
        self.began = time.monotonic()
        return engine

    def _collect(self) -> None:
        if self.stop.is_set():
            raise StoppedError("Stopped as it was told to.")
        assert self.engine is not None  # it has what is waited for
        items = self.engine.finished()
        self.waiting -= len(items)
        self._write(items)

    def _write(self, items: list[Answer | LineError]) -> None:
        answers = [item for item in items if isinstance(item, Answer)]
        errors = [item for item in items if isinstance(item, LineError)]
        self.results.add(answers)
        self.results.add_errors(errors)
        counts = self.counts
        counts.answered += len(answers)
        counts.errors += len(errors)
        counts.output_tokens += sum(answer.output_tokens for answer in answers)
        counts.seconds = time.monotonic() - self.began if self.began else 0.0
        if items:
            self.progress(counts)
        if time.monotonic() - self.saved > SYNC_SECONDS:
            self._save(RUNNING)

    def _save(self, state: str) -> None:
        """Everything onto the disk, the answers before the manifest that counts them."""
        self.results.sync()
        self.job.save(state, self.counts)
        self.saved = time.monotonic()

    def _safe(self) -> str:
        done = self.counts.before + self.counts.answered
        return f"{done:,} of {self.counts.lines:,} lines are answered; the same command goes on with the others."


def answers(output: Path | str) -> "pd.DataFrame":
    """An output as a table in the order of the input: custom_id, text, finish_reason, prompt_tokens, output_tokens.

    Reads the files of `vllm run-batch` as well, which are in that order already; errors that it puts there are left out.
    """
    import pandas as pd  # a job that only runs a batch does without

    rows = {}
    for number, result in enumerate(read_lines(output), 1):
        if not (body := (result["response"] or {}).get("body")):
            continue
        choice, usage = body["choices"][0], body["usage"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        row = (result["custom_id"], text, choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"])
        rows[line_of(result) or number] = row
    columns = ["custom_id", "text", "finish_reason", "prompt_tokens", "output_tokens"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_index().rename_axis("line")


if __name__ == "__mp_main__":  # a process that vLLM spawns imports what its parent ran
    from helpers.batch_vllm import end_with_parent

    end_with_parent()

if __name__ == "__main__":
    import sys

    from helpers.batch_command import main

    sys.exit(main())
