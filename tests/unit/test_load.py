"""Sending many requests where nobody answers, and what needs no answer: arrivals, bad input, memory."""

import asyncio
import http.server
import itertools
import statistics
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import tenacity

from helpers import load, load_async, load_stream
from helpers.client import client_for
from helpers.connections import Connection
from helpers.load import poisson, send_many
from helpers.load_http import Target
from helpers.load_records import LoadError, read


@pytest.fixture
def nobody():
    """A client for port 9, where nobody listens."""
    return client_for(Connection("http://127.0.0.1:9/v1", model="tiny", api_key="k", log="", node="here"), timeout=7)


def send_async(client, requests, threads=4, **options):
    return asyncio.run(load_async.send_many(client, requests, concurrency=threads, **options))


both = pytest.mark.parametrize("send", [send_many, send_async])


@both
def test_nothing_to_send_is_an_empty_run(nobody, send):
    run = send(nobody, [])
    assert len(run) == 0 and run.failures == [] and run.seconds >= 0 and repr(run) == "0 requests, 0 answered, 0 failed"


@both
def test_a_server_that_is_gone_fails_every_request_and_soon(nobody, send):
    """Only the first few are tried again; after that one look each is enough."""
    began = time.monotonic()
    run = send(nobody, [f"{i}" for i in range(300)], threads=3, model="m", tries=2)
    assert time.monotonic() - began < 15
    assert [record.index for record in run] == list(range(300)) and run.failed == 300
    assert {record.error for record in run} == {
        "Nothing answers at this address: the server has ended or was never started."
    }
    assert max(record.attempts for record in run) == 2 and statistics.mean(record.attempts for record in run) < 1.1


@both
def test_bad_requests_fail_one_by_one_and_are_never_sent(nobody, send):
    run = send(nobody, [{"prompt": "a", "n": 2}, 5, {"prompt": {1}}], model="m")
    assert ["leave out `n`" in run[0].error, "A request is" in run[1].error, "as JSON" in run[2].error] == [True] * 3
    assert all(record.attempts == 1 for record in run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "at least 1"),
        ({"tries": 0}, "at least 1"),
        ({"fixed_batches": True, "arrivals": [0]}, "leave out"),
        ({"to": "/nowhere/run.jsonl"}, "/nowhere/run.jsonl cannot be written: No such file"),
        ({"arrivals": [0]}, "There are 1 arrivals and more requests"),
    ],
)
def test_what_cannot_be_meant_is_refused(nobody, options, said):
    options = {"model": "m", "tries": 1} | options
    with pytest.raises(LoadError, match=said):
        send_many(nobody, ["a", "b"], **options)
    if not {"fixed_batches", "threads"} & set(options):
        with pytest.raises(LoadError, match=said):
            send_async(nobody, ["a", "b"], **options)


@both
def test_an_error_of_the_iterable_comes_through(nobody, send):
    def broken():
        yield "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        send(nobody, broken(), model="m", tries=1)


@both
def test_requests_are_read_as_needed_and_records_may_go_to_a_file(nobody, tmp_path, send):
    """1,000 requests of 50 kB are 50 MB, and so would be anything that kept them."""
    ahead, path = [], tmp_path / "run.jsonl"

    def requests():
        for number in range(1000):
            if number % 50 == 0:
                ahead.append(number - path.read_bytes().count(b"\n"))
            yield f"{number:05d} " * 8000

    tracemalloc.start()
    run = send(nobody, requests(), threads=8, model="m", tries=1, to=path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(ahead) <= 2 * 8
    assert peak < 10e6
    assert len(run) == 0 and (run.done, run.failed) == (1000, 1000)
    kept = read(path)
    assert [record.index for record in kept] == list(range(1000)) and kept.failed == 1000


# --- arrivals ------------------------------------------------------------------------------------------------------


def test_poisson_arrivals_are_seeded_and_have_the_rate():
    times = list(itertools.islice(poisson(5, seed=1), 20000))
    assert (
        times == list(itertools.islice(poisson(5, seed=1), 20000)) != list(itertools.islice(poisson(5, seed=2), 20000))
    )
    gaps = np.diff([0, *times])
    assert (gaps > 0).all() and gaps.mean() == pytest.approx(1 / 5, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.05), "an exponential distribution is as wide as its mean"
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03), "and forgets"
    with pytest.raises(LoadError, match="rate=0"):
        poisson(0)


@both
def test_requests_are_sent_when_they_are_due(nobody, send):
    due = [0, 0.3, 0.3, 0.9]
    run = send(nobody, ["a"] * 4, model="m", tries=1, arrivals=due)
    assert [record.arrived for record in run] == due
    assert all(0 <= record.started - record.arrived < 0.25 for record in run)


# --- where it sends to ---------------------------------------------------------------------------------------------


def test_address_key_and_patience_are_those_of_the_client(nobody):
    target = Target.of(nobody)
    assert target.url == "http://127.0.0.1:9/v1/" and target.timeout == 7
    assert target.headers["Authorization"] == "Bearer k" and all(isinstance(v, str) for v in target.headers.values())


def test_the_environments_proxy_is_for_servers_outside(monkeypatch, nobody):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert Target.of(nobody).proxy is None, "a server of a connection file is near"
    outside = client_for(Connection("http://far.example/v1", model="tiny", api_key="k", log=""))
    assert Target.of(outside).proxy == "http://proxy.example:3128"
    monkeypatch.setenv("no_proxy", "far.example")
    assert Target.of(outside).proxy is None


class Proxy(http.server.BaseHTTPRequestHandler):
    """Remembers what it is asked to fetch, and fetches nothing."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(self.path)
        self.send_error(403, "not through here")

    def log_message(self, *_):
        pass


@both
def test_requests_outside_go_through_the_proxy(monkeypatch, send):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.asked = []
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
            outside = client_for(Connection("http://far.example/v1", model="tiny", api_key="k", log=""))
            run = send(outside, ["a"], model="m")
        finally:
            proxy.shutdown()
    assert proxy.asked == ["http://far.example/v1/completions"] and run.failed == 1


def test_a_bar_that_is_not_wanted_is_not_drawn(nobody, capsys):
    send_many(nobody, ["a"], model="m", tries=1)
    assert capsys.readouterr() == ("", ""), "not into a file either"


def test_each_wait_is_longer_unless_the_server_says_how_long():
    def wait(attempt, error):
        outcome = tenacity.Future.construct(attempt, error, has_exception=True)
        return load.retry_policy(9, lambda: False)["wait"](SimpleNamespace(attempt_number=attempt, outcome=outcome))

    waits = [wait(attempt, load_stream.timed_out()) for attempt in (1, 2, 3, 8)]
    assert [0.5 <= waits[0] <= 1, 1 <= waits[1] <= 1.5, 2 <= waits[2] <= 2.5, waits[3] == 8] == [True] * 4
    assert wait(1, load_stream.status_error(429, b"", "30")) == 30
    assert wait(1, load_stream.status_error(429, b"", "tomorrow")) < 2
