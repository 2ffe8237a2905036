"""The server at hand as the engine of a batch: so many requests in flight from threads of this process."""

import queue
import threading
from contextlib import suppress
from typing import Any

import openai
import tenacity
from openai import OpenAI

from helpers.batch_files import CHAT, COMPLETIONS, LineError, Request, check_fields
from helpers.batch_job import StoppedError
from helpers.batch_output import Answer
from helpers.client import connect, explain, root_of

THREADS = 64  # requests in flight
TIMEOUT = 600  # seconds for one request
PATIENCE = 30  # seconds in which a server that is busy or does not answer may come back
SCHEMAS = {CHAT: "ChatCompletionRequest", COMPLETIONS: "CompletionRequest"}  # in its /openapi.json


Done = queue.SimpleQueue[Answer | LineError | StoppedError]


class AtServer:
    """A vLLM server, asked for `threads` answers at a time.

    A request that the server is too busy for (429, 5xx) is asked again for `patience` seconds. When nothing answers for
    that long the run stops: the server is gone. A request that takes longer than `timeout` is an error of its line.
    Both are in seconds.
    """

    def __init__(
        self,
        client: OpenAI | None = None,
        *,
        threads: int = THREADS,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
    ):
        self.client = (client or connect(quiet=True)).with_options(timeout=timeout, max_retries=0)
        self.model = self.client.models.list().data[0].id
        self.room, self.threads, self.patience = 2 * threads, threads, patience
        self._known = self._fields()
        self._todo: queue.SimpleQueue[tuple[Request, Done] | None] = queue.SimpleQueue()  # None ends a thread
        self._done: Done = queue.SimpleQueue()
        for _ in range(threads):  # daemons: a run that stops does not wait for the answers it gives up
            threading.Thread(target=self._work, daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """For the manifest: the server's address, threads, and vLLM's version if it tells."""
        version = (self._get("version") or {}).get("version")
        return {
            "engine": "server",
            "base_url": str(self.client.base_url),
            "threads": self.threads,
            "versions": {"vllm": version},
        }

    def submit(self, request: Request) -> None:
        """Leave it to the next thread that is free. Raises LineError for a field that the server does not know."""
        check_fields(request.body, self._known.get(request.url))
        self._todo.put((request, self._done))

    def finished(self) -> list[Answer | LineError]:
        """What is done by now, after half a second at most. Raises StoppedError when the server is gone."""
        items: list[Answer | LineError] = []
        with suppress(queue.Empty):
            items.append(_unless_gone(self._done.get(timeout=0.5)))
            while True:
                items.append(_unless_gone(self._done.get_nowait()))
        return items

    def abandon(self) -> None:
        """Give up what is not finished; answers that are on their way come out nowhere."""
        with suppress(queue.Empty):
            while True:
                self._todo.get_nowait()
        self._done = queue.SimpleQueue()  # what is in flight goes to the old one, where nobody looks

    def close(self) -> None:
        """Give up everything and end the threads, each after the request it is at."""
        self.abandon()
        for _ in range(self.threads):
            self._todo.put(None)

    def _work(self) -> None:
        while work := self._todo.get():
            request, done = work
            done.put(self._ask(request))

    def _ask(self, request: Request) -> Answer | LineError | StoppedError:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass), reraise=True,
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=8), stop=tenacity.stop_after_delay(self.patience),
        )  # fmt: skip
        body = {"model": self.model, **request.body}
        try:
            answer = again(self.client.post, request.url.removeprefix("/v1"), body=body, cast_to=object)
            return Answer(request.line, request.custom_id, answer)
        except (openai.APITimeoutError, openai.APIStatusError) as error:
            if isinstance(error, openai.AuthenticationError):
                return StoppedError(explain(error))
            return _line_error(request, error)
        except openai.APIConnectionError as error:
            return StoppedError(explain(error))
        except Exception as error:  # no answer is to be lost with its thread, whatever goes wrong in it
            return LineError(
                "not_asked", f"{type(error).__name__}: {error}", line=request.line, custom_id=request.custom_id
            )

    def _fields(self) -> dict[str, frozenset[str]]:
        """The fields of a body by url, as this server's version has them; empty when it does not say."""
        schemas = ((self._get("openapi.json") or {}).get("components") or {}).get("schemas") or {}
        found = {url: frozenset(schemas.get(name, {}).get("properties", ())) for url, name in SCHEMAS.items()}
        return {url: names for url, names in found.items() if names}

    def _get(self, route: str) -> Any:
        """A route beside /v1; None when the server has none such."""
        with suppress(openai.APIError):
            return self.client.get(f"{root_of(self.client)}/{route}", cast_to=object)
        return None


def _unless_gone(item: Answer | LineError | StoppedError) -> Answer | LineError:
    if isinstance(item, StoppedError):
        raise item
    return item


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.APITimeoutError):
        return False  # the server was still at it: asking again would only add to the load
    busy = isinstance(error, openai.APIStatusError) and (error.status_code == 429 or error.status_code >= 500)
    return busy or isinstance(error, openai.APIConnectionError)


def _line_error(request: Request, error: openai.APIError) -> LineError:
    response = None
    if isinstance(error, openai.APIStatusError):
        response = {"status_code": error.status_code, "request_id": error.request_id or "", "body": error.body}
    code = f"http_{error.status_code}" if isinstance(error, openai.APIStatusError) else "timeout"
    return LineError(code, explain(error), line=request.line, custom_id=request.custom_id, response=response)
