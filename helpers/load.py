"""Many requests at once: threads that take them from a queue, and a record of each answer's times.

    run = send_many(client, ["Hello", "The weather in Boston is"], threads=4, max_tokens=50)
    run.frame, run.texts, run.failures

Closed loop: as one request finishes, the next is sent, so that always `threads` are in flight. Open loop (`arrivals`): a
request is sent when it is due, whether or not others are still waiting, as users do who know nothing of each other.

    python -m helpers.load --participants 60        whether a server can take a class, see participants.py

load_async.py does the same with asyncio, load_stats.py says what came of it, load_plots.py draws it.
"""

import io
import itertools
import queue
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import tenacity
from IPython import get_ipython
from IPython.display import display
from openai import OpenAI
from tqdm import tqdm

from helpers.load_http import Lines, now
from helpers.load_records import STOPPED, LoadError, Record, Request, Run, body_of, line_of
from helpers.load_stream import forget_frames, is_unreachable, may_pass, seconds_asked, sentence

TRIES = 4
BACKOFF = 0.5  # seconds before the second try; then twice as long each time, and some at random: not all at once


def send_many(
    client: OpenAI,
    requests: Iterable[Request],
    *,
    threads: int = 4,
    arrivals: Iterable[float] | None = None,
    fixed_batches: bool = False,
    to: Path | str | None = None,
    tries: int = TRIES,
    progress: bool = True,
    **common: Any,
) -> Run:
    """Send all requests, at most `threads` at a time, and return the run with a Record for each, in their order.

    `requests`: prompts, or dictionaries of the API's parameters (a chat has `messages`); any iterable, read as needed.
    `common` parameters hold for all of them, vLLM's own too; without a `model` the server's first is taken.
    `arrivals`: when each request is due, in seconds from the start (see `poisson`); without it a request follows a request.
    `fixed_batches`: wait for all of a batch of `threads` before sending the next, to see what that costs.
    `to`: a file for the records, one line of JSON each as they finish; then none is kept in memory (see `read`).

    A request that fails becomes a record with the cause. 429, 5xx and lost connections are tried again, up to `tries`
    times in all; when a server is found gone, those that follow are tried once, until one gets through.
    Ctrl-C ends the run and returns what has finished. Raises LoadError for what cannot be sent or written like this.
    """
    if threads < 1 or tries < 1:
        raise LoadError(f"threads={threads} and tries={tries}: give at least 1 of each.")
    if fixed_batches and arrivals is not None:
        raise LoadError("A fixed batch is sent as a whole: leave out `arrivals` or `fixed_batches`.")
    run = Run(workers=threads, path=Path(to) if to else None)
    with ExitStack() as stack:
        file = stack.enter_context(open_file(run.path)) if run.path else None
        bar = stack.enter_context(Bar(requests, threads, progress))
        sender = stack.enter_context(_Sender(client, threads, tries, common))
        try:
            for record in sender.records(requests, arrivals, fixed_batches):
                _keep(run, record, file)
                bar.update()
        except KeyboardInterrupt:
            run.interrupted = True
            for record in sender.stop():
                _keep(run, record, file)
            print(f"Stopped by Ctrl-C: the {run.done} requests that had finished are kept.")
        run.began, run.seconds = sender.began, now() - sender.began
    run.records.sort(key=lambda record: record.index)
    return run


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Times of arrival without end, in seconds: `rate` a second on average, each independent of the others.

    The gaps of a Poisson process are exponentially distributed, with mean 1/rate. Raises LoadError for a rate not above 0.
    """
    if rate <= 0:
        raise LoadError(f"rate={rate}: give more than 0 requests a second.")
    draw = random.Random(seed)
    return itertools.accumulate(iter(lambda: draw.expovariate(rate), None))


def open_file(path: Path) -> TextIO:
    """The file for the records, each line written at once. Raises LoadError where there can be none."""
    try:
        return open(path, "w", buffering=1)
    except OSError as error:
        raise LoadError(f"{path} cannot be written: {error.strerror}. Name another file.") from None


def due(requests: Iterable[Request], arrivals: Iterable[float] | None) -> Iterator[tuple[Request, float | None]]:
    """Each request with the time at which it is due. Raises LoadError when there are fewer arrivals than requests."""
    times = itertools.repeat(None) if arrivals is None else iter(arrivals)
    for index, request in enumerate(requests):
        try:
            yield request, next(times)
        except StopIteration:
            raise LoadError(f"There are {index} arrivals and more requests; `poisson(rate)` has no end.") from None


def _keep(run: Run, record: Record, file: TextIO | None) -> None:
    run.add(record)
    if file:
        file.write(line_of(record))


class _Sender:
    """A pool of threads, the connections they use, and a queue of finished records."""

    def __init__(self, client: OpenAI, threads: int, tries: int, common: dict[str, Any]):
        self._client, self._threads, self._tries, self._common = client, threads, tries, common
        self._lines = Lines(client, threads)
        self._pool = ThreadPoolExecutor(threads, initializer=self._number)
        self._own = threading.local()
        self._workers: list[threading.Thread] = []
        self._finished: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._counting, self._gone = threading.Lock(), threading.Event()
        self._pending = 0
        self.began = now()

    def __enter__(self) -> "_Sender":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind:
            self.stop()
        self._pool.shutdown()
        self._lines.close()

    def _number(self) -> None:
        with self._counting:
            self._own.number = len(self._workers)
            self._workers.append(threading.current_thread())

    def records(
        self, requests: Iterable[Request], arrivals: Iterable[float] | None, fixed_batches: bool
    ) -> Iterator[Record]:
        """Give out the requests and yield the records as they finish. So many wait in the pool that no thread idles."""
        room = self._threads * (1 if fixed_batches else 2)
        for index, (request, at) in enumerate(due(requests, arrivals)):
            if index == 0:
                self._choose_model()
                self.began = now()
            if fixed_batches and index % self._threads == 0:
                yield from self._wait_for(0)
            yield from self._wait_for(room - 1)
            if at is not None:
                yield from self._until(self.began + at)
            self._pending += 1
            self._pool.submit(self._work, index, request, at)
        yield from self._wait_for(0)

    def _wait_for(self, most: int) -> Iterator[Record]:
        while self._pending > most:
            record = self._finished.get()
            self._pending -= 1
            yield record

    def _until(self, moment: float) -> Iterator[Record]:
        while (left := moment - now()) > 0:
            with suppress(queue.Empty):
                record = self._finished.get(timeout=left)
                self._pending -= 1
                yield record

    def stop(self) -> list[Record]:
        """Break off what is in flight, and return what had finished and was not yet given out."""
        self._lines.stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while alive := [worker for worker in self._workers if worker.is_alive()]:
            self._lines.break_off()  # more than once: a connection may just be being made
            alive[0].join(0.1)
        left = []
        with suppress(queue.Empty):
            while True:
                left.append(self._finished.get_nowait())
        return [record for record in left if record.error != STOPPED]

    def _choose_model(self) -> None:
        if "model" not in self._common:
            self._common = {"model": self._client.models.list().data[0].id, **self._common}

    def _work(self, index: int, request: Request, at: float | None) -> None:
        """One request from its sending to its record."""
        sent = now()
        started = sent - self.began
        record = Record(index, started if at is None else at, started, worker=self._own.number)
        try:
            if self._lines.stopped.is_set():
                raise LoadError(STOPPED)
            route, body = body_of(request, self._common)
            self._send(route, body, record, sent)
            if self._gone.is_set():
                self._gone.clear()
        except Exception as error:
            record.error = STOPPED if self._lines.stopped.is_set() else sentence(error)
            record.e2e = now() - sent
            if is_unreachable(error):
                self._gone.set()
            forget_frames(error)
        self._finished.put(record)

    def _send(self, route: str, body: bytes, record: Record, sent: float) -> None:
        for attempt in tenacity.Retrying(**retry_policy(self._tries, self._hopeless), sleep=self._pause):
            with attempt:
                record.attempts = attempt.retry_state.attempt_number
                self._lines.stream(route, body, record, sent)

    def _pause(self, seconds: float) -> None:
        self._lines.stopped.wait(seconds)

    def _hopeless(self) -> bool:
        return self._lines.stopped.is_set() or self._gone.is_set()


def retry_policy(tries: int, hopeless: Callable[[], bool]) -> dict[str, Any]:
    """tenacity's settings: what passes is tried again, later and later, or when the server asks for it.

    At most `tries` times in all, and not again once it is `hopeless`.
    """
    backoff = tenacity.wait_exponential_jitter(multiplier=BACKOFF, max=16 * BACKOFF, jitter=BACKOFF)
    return {
        "retry": tenacity.retry_if_exception(may_pass),
        "stop": lambda state: state.attempt_number >= tries or hopeless(),
        "wait": lambda state: max(backoff(state), seconds_asked(state.outcome.exception())),
        "reraise": True,
    }


class Bar:
    """How far the run is: tqdm's bar, in a notebook as text that turns into a plain sentence when the run is over."""

    def __init__(self, requests: Iterable[Request], at_once: int, progress: bool):
        total = len(requests) if isinstance(requests, Sized) else None
        look: dict[str, Any] = {"total": total, "unit": " requests", "leave": False, "mininterval": 0.2}
        if hasattr(get_ipython(), "kernel"):
            text = f"{'Requests' if total is None else f'{total:,} requests'}, {at_once} at a time"
            self._bar = _NotebookBar(text, disable=not progress, **look)
        else:
            self._bar = tqdm(disable=None if progress else True, **look)  # None: not into a file

    def update(self) -> None:
        """One request more is done."""
        self._bar.update()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _NotebookBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Text updated in place; before and after the run it is `text`, so that a saved notebook holds no half-drawn bar."""

    def __init__(self, text: str, **options: Any):
        self._text = text
        self._place = None
        if not options.get("disable"):
            look = {"text/plain": text}
            self._place = display(look, raw=True, display_id=True)  # type: ignore[no-untyped-call]  # IPython's
        super().__init__(ncols=80, file=io.StringIO(), **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        shown = self._text if msg == "" else msg or str(self)  # "": the end
        if self._place:
            self._place.update({"text/plain": shown}, raw=True)


if __name__ == "__main__":
    from helpers.participants import main

    sys.exit(main())
