"""What a batch reads: requests, one a line, in the OpenAI batch format, or plain prompts as text, JSON, CSV or Parquet.

A file is read line by line, so its size does not matter. A line that cannot be asked becomes a LineError that names it;
the others are read all the same.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from helpers.errors import WorkshopError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt", ".csv": "csv", ".parquet": "parquet"}
FIELDS = {"custom_id", "method", "url", "body"}  # of a line in the OpenAI batch format
MIB = 2**20
MAX_LINE = 16 * MIB  # bytes; a longer line is no request but a mistake, and would have to be held in memory whole
BOM = b"\xef\xbb\xbf"  # Windows programs put it at the beginning of a text


class InputError(WorkshopError):
    """A file of requests that cannot be read at all."""


class LineError(Exception):
    """A line that cannot be asked, or was asked in vain: `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, *, line: int = 0, custom_id: str | None = None, response: Any = None):
        super().__init__(message)
        self.code, self.message, self.line, self.custom_id = code, message, line, custom_id
        self.response = response  # what a server answered, if one did


@dataclass(frozen=True)
class Request:
    """One request: the line of the file it stands on (from 1), its name, and what is asked where."""

    line: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Defaults:
    """What lines leave out: where a plain prompt goes, in which column it stands, and fields of the body."""

    url: str = CHAT
    column: str = "prompt"
    body: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def fill(self, line: int, body: dict[str, Any]) -> dict[str, Any]:
        """The body with defaults. A seed differs from line to line, and is the same again when the line is asked again."""
        whole = {**self.body, **body}
        if self.seed is not None and whole.get("temperature") != 0:
            whole.setdefault("seed", self.seed + line)
        return whole


class Input:
    """A file of requests. Raises InputError when it is missing, empty, or of a kind that cannot be read here."""

    def __init__(self, path: Path | str, defaults: Defaults | None = None, *, max_line: int = MAX_LINE):
        self.path, self.defaults, self.max_line = Path(path), defaults or Defaults(), max_line
        if not self.path.is_file():
            raise InputError(f"{path} is missing. Name a file of requests.")
        if self.path.suffix.lower() not in FORMATS:
            raise InputError(f"{path} ends in none of {', '.join(FORMATS)}. Rename or convert it.")
        self.format = FORMATS[self.path.suffix.lower()]
        self.bytes = self.path.stat().st_size
        if not self.bytes:
            raise InputError(f"{path} is empty. Put a request on each line.")

    def digest(self, size: int | None = None) -> str:
        """SHA-256 of the file, or of its first `size` bytes, in hexadecimal digits."""
        sha, left = hashlib.sha256(), self.bytes if size is None else size
        with open(self.path, "rb") as file:
            while left > 0 and (chunk := file.read(min(MIB, left))):
                sha.update(chunk)
                left -= len(chunk)
        return sha.hexdigest()

    def read(self) -> Iterator[Request | LineError]:
        """Every line that is not blank, in order: a request, or what is wrong with it."""
        forms: dict[str, tuple[Callable[[], Iterator[tuple[int, Any]]], Callable[[int, Any], Request]]] = {
            "jsonl": (self._lines, self._of_json),
            "txt": (self._lines, self._of_text),
            "csv": (self._rows_of_csv, self._of_row),
            "parquet": (self._rows_of_parquet, self._of_row),
        }
        records, make = forms[self.format]
        for line, record in records():
            try:
                yield make(line, record)
            except LineError as error:
                error.line = line
                yield error

    def _lines(self, *, blank: bool = False) -> Iterator[tuple[int, tuple[bytes, int]]]:
        """(number, (bytes, how many more there are)) of every line; Windows line ends count as line ends."""
        with open(self.path, "rb") as file:
            number = 0
            while raw := file.readline(self.max_line + 1):
                number += 1
                more = _rest_of_line(file) if len(raw) > self.max_line and not raw.endswith(b"\n") else 0
                raw = raw.removeprefix(BOM) if number == 1 else raw
                if blank or raw.strip():
                    yield number, (raw, more)

    def _text(self, raw: bytes, more: int) -> str:
        if more:
            size, limit = (len(raw) + more) / MIB, self.max_line / MIB
            raise LineError(
                "line_too_long", f"{size:,.1f} MiB in one line; at most {limit:,.0f} are taken (--max-line)"
            )
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise LineError("invalid_utf8", f"byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None

    def _of_json(self, line: int, record: tuple[bytes, int]) -> Request:
        return self._request(line, parse(self._text(*record)))

    def _of_text(self, line: int, record: tuple[bytes, int]) -> Request:
        return self._prompt(line, self._text(*record))

    def _of_row(self, line: int, row: dict[str, Any] | LineError) -> Request:
        if isinstance(row, LineError):
            raise row
        return self._prompt(line, row[self.defaults.column], row.get("custom_id"))

    def _rows_of_csv(self) -> Iterator[tuple[int, dict[str, str] | LineError]]:
        """A row with quoted cells may span lines; it has the number of the first."""
        csv.field_size_limit(self.max_line)
        problems: list[LineError] = []

        def texts() -> Iterator[str]:
            for _, record in self._lines(blank=True):
                try:
                    yield self._text(*record) + "\n"
                except LineError as error:
                    problems.append(error)
                    yield "\n"

        rows = csv.reader(texts())
        header = next(rows, [])
        self._check_column(header)
        while True:
            line = rows.line_num + 1
            problems.clear()
            try:
                row = next(rows, None)
            except csv.Error as error:
                problems.append(LineError("invalid_csv", f"no row of a CSV file: {error}"))
                row = []
            if row is None:
                return
            if row and len(row) != len(header):
                problems.append(LineError("invalid_csv", f"{len(row)} cells where the header has {len(header)}"))
            if row or problems:
                yield line, problems[0] if problems else dict(zip(header, row, strict=True))

    def _rows_of_parquet(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            from pyarrow import parquet
        except ImportError:
            raise InputError(
                f"Reading {self.path} takes pyarrow, which is not installed. Run `pip install -r requirements/parquet.txt`, or save it as CSV."
            ) from None
        try:
            file = parquet.ParquetFile(self.path)
        except ValueError as error:
            raise InputError(f"{self.path} is no Parquet file ({error}). Save it anew.") from None
        columns = [name for name in (self.defaults.column, "custom_id") if name in file.schema_arrow.names]
        self._check_column(columns)
        row = 0
        for part in file.iter_batches(1024, columns=columns):
            for cells in part.to_pandas().to_dict("records"):
                row += 1
                yield row, cells

    def _check_column(self, names: list[str]) -> None:
        if self.defaults.column not in names:
            raise InputError(
                f"{self.path} has no column {self.defaults.column!r}. Name the one with prompts: --column."
            )

    def _prompt(self, line: int, prompt: Any, custom_id: Any = None) -> Request:
        if not isinstance(prompt, str) or not prompt.strip():
            raise LineError("no_prompt", "there is no prompt here")
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.defaults.url == CHAT else {"prompt": prompt}
        name = f"line-{line}" if custom_id in (None, "") else str(custom_id)
        return Request(line, name, self.defaults.url, self.defaults.fill(line, asked))

    def _request(self, line: int, data: Any) -> Request:
        return self._prompt(line, data) if isinstance(data, str) else request_of(line, data, self.defaults)


def request_of(line: int, data: Any, defaults: Defaults | None = None) -> Request:
    """The request of a line in the OpenAI batch format. Raises LineError, which says what is wrong with it."""
    if not isinstance(data, dict):
        raise LineError("invalid_request", "neither a JSON object nor a string")
    name = data.get("custom_id")
    if not isinstance(name, str) or not name or not _can_be_written(name):
        raise LineError("no_custom_id", 'there is no "custom_id", a text that names this request')
    if problem := _problem_of(data):
        raise LineError("invalid_request", problem, custom_id=name)
    return Request(line, name, data["url"], (defaults or Defaults()).fill(line, data["body"]))


def _problem_of(data: dict[str, Any]) -> str:
    """What is wrong with a line of the OpenAI batch format; empty when nothing is."""
    if strange := data.keys() - FIELDS:
        return f"unknown fields: {', '.join(sorted(strange))}. A line has {', '.join(sorted(FIELDS))}"
    if data.get("method", "POST") != "POST":
        return f'"method" is {data["method"]!r}; it must be "POST"'
    if data.get("url") not in (CHAT, COMPLETIONS):
        return f'"url" is {data.get("url")!r}; it must be {CHAT} or {COMPLETIONS}'
    if not isinstance(data.get("body"), dict):
        return '"body" is missing or no object'
    return '"stream" has no place in a batch' if data["body"].get("stream") else ""


def parse(text: str) -> Any:
    """What a line of JSON holds. Raises LineError for one that holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError("invalid_json", f"no JSON: {error or 'nested too deeply'}") from None


def _rest_of_line(file: BinaryIO) -> int:
    """Pass over what is left of a line; its bytes."""
    size = 0
    while chunk := file.readline(MIB):
        size += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return size


def _can_be_written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON allows
        return False
    return True


def check_fields(body: dict[str, Any], known: frozenset[str] | None) -> None:
    """Raises LineError for a field that vLLM does not know, which it would pass over in silence."""
    if known is not None and (strange := body.keys() - known):
        raise LineError("unknown_field", f"unknown fields in the body: {', '.join(sorted(strange))}")
