"""Many requests at once with asyncio: one thread that waits for all answers, where load.py has a thread for each.

    run = await send_many(client, prompts, concurrency=64, max_tokens=50)

The same records as helpers.load.send_many makes, the same retries, arrivals and file; it sends with aiohttp, as
`vllm bench serve` does. Cancelled, or stopped by Ctrl-C, it breaks off; what had finished by then is in the file `to`.
"""

import asyncio
import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import tenacity
from openai import OpenAI

from helpers.load import TRIES, Bar, due, open_file, retry_policy
from helpers.load_http import CONNECT_SECONDS, Target, now
from helpers.load_records import LoadError, Record, Request, Run, body_of, line_of
from helpers.load_stream import Reader, forget_frames, is_unreachable, lost, sentence, status_error, timed_out


async def send_many(
    client: OpenAI,
    requests: Iterable[Request],
    *,
    concurrency: int = 4,
    arrivals: Iterable[float] | None = None,
    to: Path | str | None = None,
    tries: int = TRIES,
    progress: bool = True,
    **common: Any,
) -> Run:
    """Send all requests, at most `concurrency` at a time; see helpers.load.send_many, whose parameters these are."""
    if concurrency < 1 or tries < 1:
        raise LoadError(f"concurrency={concurrency} and tries={tries}: give at least 1 of each.")
    run = Run(workers=concurrency, path=Path(to) if to else None)
    waiting = due(requests, arrivals)
    turn = asyncio.Lock()  # who takes the next request, and waits until it is due
    with ExitStack() as stack:
        file = stack.enter_context(open_file(run.path)) if run.path else None
        bar = stack.enter_context(Bar(requests, concurrency, progress))
        if (first := next(waiting, None)) is None:
            return run
        numbered = enumerate(itertools.chain([first], waiting))
        if "model" not in common:
            common["model"] = (await asyncio.to_thread(client.models.list)).data[0].id
        async with Line(client, concurrency, tries) as line:
            run.began = began = now()

            async def work(number: int) -> None:
                while True:
                    async with turn:
                        if (taken := next(numbered, None)) is None:
                            return
                        index, (request, at) = taken
                        if at is not None and (left := began + at - now()) > 0:
                            await asyncio.sleep(left)
                    started = now() - began
                    record = Record(index, started if at is None else at, started, worker=number)
                    await line.ask(request, common, record)
                    run.add(record)
                    if file:
                        file.write(line_of(record))
                    bar.update()

            try:
                async with asyncio.TaskGroup() as workers:
                    for number in range(concurrency):
                        workers.create_task(work(number))
            except ExceptionGroup as group:  # what `requests` or the file raised; a request's failure is in its record
                raise group.exceptions[0] from None
            run.seconds = now() - began
    run.records.sort(key=lambda record: record.index)
    return run


class Line:
    """A session with the server, for requests that are asked one by one or many at once."""

    def __init__(self, client: OpenAI, connections: int, tries: int = TRIES):
        self._target, self._tries, self._gone = Target.of(client), tries, asyncio.Event()
        self._connections = connections

    async def __aenter__(self) -> "Line":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._target.timeout)
        connector = aiohttp.TCPConnector(limit=self._connections)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._target.headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, request: Request, common: dict[str, Any], record: Record) -> None:
        """Send one request now and fill its record; a failure becomes the record's error."""
        sent = now()
        try:
            route, body = body_of(request, common)
            async for attempt in tenacity.AsyncRetrying(**retry_policy(self._tries, self._gone.is_set)):
                with attempt:
                    record.attempts = attempt.retry_state.attempt_number
                    await self._stream(route, body, record, sent)
            self._gone.clear()
        except Exception as error:
            record.error, record.e2e = sentence(error), now() - sent
            if is_unreachable(error):
                self._gone.set()
            forget_frames(error)

    async def _stream(self, route: str, body: bytes, record: Record, sent: float) -> None:
        reader = Reader(record, sent)
        try:
            async with self._session.post(self._target.url + route, data=body, proxy=self._target.proxy) as response:
                if response.status != 200:
                    raise status_error(response.status, await response.read(), response.headers.get("retry-after"))
                async for data in response.content.iter_any():
                    reader.feed(data, now())
                reader.finish()
        except aiohttp.ConnectionTimeoutError as error:
            raise lost() from ConnectionRefusedError(str(error))
        except TimeoutError:
            raise timed_out() from None
        except aiohttp.ClientConnectorError as error:
            raise lost() from ConnectionRefusedError(str(error))
        except (aiohttp.ClientError, OSError) as error:
            raise lost() from ConnectionResetError(str(error))
        finally:
            reader.keep()
