"""What the bytes of a streamed answer mean, and what its failures are called.

Failures are raised as the openai client's errors, so that helpers.client.explain has a sentence for each.
"""

import json
import math
from array import array
from contextlib import suppress
from typing import Any

import httpx2
import openai

from helpers.client import explain
from helpers.errors import WorkshopError
from helpers.load_records import Record

STATUS_ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
GIVEN_UP = ("abort", "error")  # vLLM's finish reasons for an answer that it ended by itself


class StreamError(WorkshopError):
    """A stream that is not what the API promises."""


class Reader:
    """Turns the bytes of one answer's stream into a record's times, tokens and text.

    `feed` takes what came and when, in seconds of `now()`; `finish` is called after the end.
    Raises the openai client's errors for what the server reports, StreamError for what is no such stream.
    """

    def __init__(self, record: Record, sent: float):
        record.ttft, record.finish_reason, record.output_tokens = math.nan, None, 0
        record.itl = self._gaps = array("d")
        self._record, self._sent, self._last = record, sent, 0.0
        self._buffer, self._pieces, self.done = b"", 0, False
        self._texts: list[str] = []

    def feed(self, data: bytes, at: float) -> None:
        """Take bytes that came at this time; an event may be spread over several of them."""
        self._buffer += data
        if b"\r" in self._buffer:
            self._buffer = self._buffer.replace(b"\r\n", b"\n")
        if b"\n\n" in self._buffer:
            *events, self._buffer = self._buffer.split(b"\n\n")
            for event in events:
                self._event(event, at)

    def _event(self, event: bytes, at: float) -> None:
        if not event.startswith(b"data: ") or b"\n" in event:  # comments, names of events, data in several lines
            lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
            if not lines:
                return
            event = b"data: " + b"\n".join(line[5:].strip() for line in lines)
        data = event[6:]
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise reported_error(error)
            if choices := chunk["choices"]:
                self._piece(choices[0], at)
            if usage := chunk.get("usage"):
                self._record.prompt_tokens = int(usage["prompt_tokens"])
                self._record.output_tokens = int(usage["completion_tokens"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise StreamError(f"The stream holds what is no answer of the API: {_shown(data)}") from None

    def _piece(self, choice: dict[str, Any], at: float) -> None:
        record, delta = self._record, choice.get("delta")
        text = choice["text"] if delta is None else delta.get("content")
        if choice.get("finish_reason"):
            record.finish_reason = choice["finish_reason"]
        elif delta is not None and "role" in delta and not text:
            return  # a chat's opening: no token yet
        if self._pieces:
            self._gaps.append(at - self._last)
        else:
            record.ttft = at - self._sent
        self._pieces += 1
        self._last = at
        self._texts.append(text or "")

    def finish(self) -> None:
        """Check that the answer is whole. Without the server's count, a piece counts as a token."""
        record = self._record
        if not self._pieces and self._buffer.strip():
            raise StreamError(f"The answer is no stream of events: {_shown(self._buffer)}")
        if not self._pieces and self.done:
            raise StreamError("The stream ended without a token. A server that does so is not one of this API.")
        if not record.finish_reason:
            raise lost() from ConnectionResetError("the stream ended early")
        if record.finish_reason in GIVEN_UP:
            raise openai.APIError(f"it gave up this answer ({record.finish_reason})", _request(), body=None)
        record.output_tokens = record.output_tokens or self._pieces
        record.e2e = self._last - self._sent

    def keep(self) -> None:
        """Leave in the record what text there is; of a try that brought none, what the one before had brought."""
        if self._texts:
            self._record.text = "".join(self._texts)


def _shown(data: bytes) -> str:
    text = " ".join(data.decode(errors="replace").split())
    return text[:80] + ("…" if len(text) > 80 else "")


# --- errors --------------------------------------------------------------------------------------------------------


def _request() -> httpx2.Request:
    return httpx2.Request("POST", "http://server/v1")  # openai's errors want one; nobody reads it


def status_error(status: int, body: bytes, retry_after: str | None = None) -> openai.APIStatusError:
    """The error that the openai client would raise for this answer."""
    try:
        said = json.loads(body)
        said = said.get("error", said)
        text = said if isinstance(said, str) else said.get("message") or said.get("detail") or str(said)
    except (ValueError, AttributeError):
        text = _shown(body)
    kind = STATUS_ERRORS.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    headers = {"retry-after": retry_after} if retry_after else {}
    response = httpx2.Response(status, request=_request(), headers=headers)
    return kind(str(text) or f"status {status}", response=response, body=None)


def reported_error(error: dict[str, Any] | str) -> openai.APIError:
    """The error that stands in the middle of a stream."""
    said = error if isinstance(error, dict) else {"message": error}
    if isinstance(code := said.get("code"), int) and code >= 400:
        return status_error(code, json.dumps(said).encode())
    return openai.APIError(str(said.get("message") or said), _request(), body=None)


def timed_out() -> openai.APITimeoutError:
    """The error of a request that took longer than its timeout."""
    return openai.APITimeoutError(_request())


def lost() -> openai.APIConnectionError:
    """To be raised from a ConnectionRefusedError when no connection came about, from a ConnectionResetError when it broke."""
    return openai.APIConnectionError(request=_request())


def is_unreachable(error: BaseException) -> bool:
    """Whether no connection came about at all."""
    return isinstance(error, openai.APIConnectionError) and isinstance(error.__cause__, ConnectionRefusedError)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: 429, 5xx and lost connections.

    Not a timeout: the server may still be computing the answer, and a second request would add to its load.
    """
    if isinstance(error, openai.APITimeoutError):
        return False
    if isinstance(error, openai.APIStatusError):
        return error.status_code == 429 or error.status_code >= 500
    return isinstance(error, openai.APIError)


def seconds_asked(error: BaseException | None) -> float:
    """Seconds that the server asks us to wait, by its Retry-After; 0 where it does not."""
    if isinstance(error, openai.APIStatusError):
        with suppress(ValueError):
            return max(0.0, float(error.response.headers.get("retry-after", 0)))
    return 0.0


def sentence(error: Exception) -> str:
    """What went wrong, in one line, with the mend."""
    return str(error) if isinstance(error, WorkshopError) else " ".join(explain(error).split())


def forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and its causes came through: they hold the prompt, in circles that linger."""
    if error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        forget_frames(error.__context__)
