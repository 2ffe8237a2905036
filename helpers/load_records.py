"""What a load test notes of each request: the record, the run that holds them, and the file they may go to.

The times mean what `vllm bench serve` means by them (vllm/benchmarks/lib/endpoint_request_func.py and serve.py of vLLM
0.32), so that figures compare:

- TTFT, time to first token: from sending the request to the first piece of its answer.
- ITL, inter-token latency: each gap between one piece and the next. A piece may hold several tokens.
- E2E, end-to-end latency: from sending to the last piece that holds text.
- TPOT, time per output token: (E2E - TTFT) / (output tokens - 1), for answers of at least two tokens.

In a chat the first thing vLLM sends is the role "assistant", at the moment of the first token; we wait for the token.
"""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, overload

import pandas as pd

from helpers.errors import WorkshopError

STOPPED = "Stopped by Ctrl-C before it was finished."
COLUMNS = (
    "arrived", "started", "ended", "ttft", "tpot", "e2e", "prompt_tokens", "output_tokens", "finish_reason", "attempts",
    "worker", "error",
)  # fmt: skip


class LoadError(WorkshopError):
    """A load test that cannot be run or read."""


@dataclass(slots=True)
class Record:
    """One request of a run. All times are seconds; `arrived` and `started` are counted from the start of the run.

    `arrived`: when it was due; `started`: when it was first sent, later where every worker was busy. A request that had
    to be sent again is timed from its first sending, for that is how long its user waits.
    `error` is empty or says in one sentence why there is no whole answer; then `text` is what came of it.
    """

    index: int
    arrived: float = 0.0
    started: float = 0.0
    ttft: float = math.nan
    e2e: float = math.nan
    itl: Sequence[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    text: str = ""
    error: str = ""
    attempts: int = 1
    worker: int = 0

    @property
    def ok(self) -> bool:
        """Whether the answer is there, and whole."""
        return not self.error

    @property
    def ended(self) -> float:
        """Seconds from the start of the run to the end of its answer; NaN when there is none."""
        return self.started + self.e2e

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; NaN for a single token."""
        return (self.e2e - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else math.nan


NAMES = [field.name for field in fields(Record)]


@dataclass
class Run(Sequence[Record]):
    """The records of one run, in the order in which the requests were given, and how long it took in seconds.

    `began` is the time.monotonic() at which it started. `done` counts all that were sent, also those whose records went to
    the file `path` and are not kept here.
    """

    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    workers: int = 1
    done: int = 0
    failed: int = 0
    interrupted: bool = False
    path: Path | None = None
    began: float = 0.0

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        return self.records[place]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def texts(self) -> list[str]:
        """The answers, in the order of the requests."""
        return [record.text for record in self.records]

    @property
    def failures(self) -> list[Record]:
        """The records of requests that were not answered, or not to the end."""
        return [record for record in self.records if not record.ok]

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each request, by its place in the input; times in seconds. See Record for the columns."""
        rows = [[getattr(record, name) for name in COLUMNS] for record in self.records]
        return pd.DataFrame(
            rows, columns=list(COLUMNS), index=pd.Index([r.index for r in self.records], name="request")
        )

    def add(self, record: Record) -> None:
        """Count this record, and keep it unless it goes to a file."""
        self.done += 1
        self.failed += not record.ok
        if self.path is None:
            self.records.append(record)

    def __repr__(self) -> str:
        said = f"{self.done} requests, {self.done - self.failed} answered, {self.failed} failed"
        said += ", stopped by Ctrl-C" if self.interrupted else ""
        causes = list(dict.fromkeys(record.error for record in self.failures))
        more = [f"and {len(causes) - 3} other causes"] if len(causes) > 3 else []
        return "\n- ".join([said, *causes[:3], *more])


def line_of(record: Record) -> str:
    """The record as a line of JSON; NaN, which JSON lacks, becomes null."""
    values = {name: getattr(record, name) for name in NAMES} | {"itl": [round(gap, 6) for gap in record.itl]}
    return json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}) + "\n"


def read(path: Path | str) -> Run:
    """The run whose records stand in this file, in the order of its requests.

    A last line that broke off (a full disk, a machine that went down) is left out. Raises LoadError for another file.
    """
    try:
        lines = Path(path).read_text().splitlines(keepends=True)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from None
    records = sorted(_records(path, lines), key=lambda record: record.index)
    began = min((record.started for record in records), default=0.0)
    ends = [record.ended for record in records if not math.isnan(record.ended)]
    workers = 1 + max((record.worker for record in records), default=0)
    failed = sum(not record.ok for record in records)
    return Run(records, max(ends, default=began) - began, workers, len(records), failed)


def _records(path: Path | str, lines: list[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        try:
            values = {k: v for k, v in json.loads(line).items() if k in NAMES}
            times = {k: math.nan if values[k] is None else values[k] for k in ("ttft", "e2e")}
            yield Record(**values | times | {"itl": array("d", values["itl"])})
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == len(lines) and not line.endswith("\n"):
                return
            raise LoadError(
                f"Line {number} of {path} is no record of a run; `send_many(..., to=...)` writes them."
            ) from None


# --- requests -----------------------------------------------------------------------------------------------------

Request = str | Mapping[str, Any]


def body_of(request: Request, common: Mapping[str, Any]) -> tuple[str, bytes]:
    """Route and JSON body of a request: a prompt to continue, or a dictionary of the API's own parameters.

    With `messages` it is a chat. `common` parameters hold where the request does not set its own. Raises LoadError.
    """
    if isinstance(request, str):
        request = {"prompt": request}
    if not isinstance(request, Mapping) or ("prompt" in request) == ("messages" in request):
        raise LoadError(
            "A request is a prompt, or a dictionary of API parameters that has either `prompt` or `messages`."
        )
    body = {**common, **request}
    if body.get("n", 1) != 1:
        raise LoadError("A request here has one answer, so that its times are those of that answer: leave out `n`.")
    body |= body.pop("extra_body", None) or {}  # as the openai client has it
    route = "chat/completions" if "messages" in request else "completions"
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        return route, json.dumps(body).encode()
    except (TypeError, ValueError) as error:
        raise LoadError(f"This request cannot be written as JSON: {error}.") from None
