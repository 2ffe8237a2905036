"""Finding a server: what is said when there is none, and what an openai error means."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime

import httpx
import openai
import pytest
from test_queue import commands

from helpers import client, queue
from helpers.client import NoServerError, connect, explain
from helpers.connections import Connection
from helpers.jobs import Job
from helpers.logprobs import LogprobsError
from helpers.queue import SEPARATOR
from helpers.tiny.evaluate import served_odds


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No server known, and none at the default address either: port 9 is the discard service, which nobody runs."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path))
    monkeypatch.setattr(client, "LOCALHOST", "http://localhost:9/v1")
    monkeypatch.setattr(queue, "is_here", lambda: False)
    return tmp_path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def a_connection(log="", **fields) -> Connection:
    given = {"model": "tiny", "api_key": "k", "node": socket.gethostname(), "pid": os.getpid(), "state": "ready"}
    return Connection("http://127.0.0.1:9/v1", log=str(log), **given | fields)


def complaint(**settings) -> str:
    with pytest.raises(NoServerError) as caught:
        connect(quiet=True, **settings)
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"NoServerError: {caught.value}"], "what a notebook shows"
    return str(caught.value)


def test_without_a_server_it_says_where_it_looked_and_what_to_do(home):
    text = complaint()
    assert "VLLM_BASE_URL is not set" in text and f"{home}/servers names no server" in text
    assert "http://localhost:9/v1 does not answer" in text and "connect(start=True)" in text and "make lab" in text


def test_an_address_named_by_hand_is_the_only_one_tried(monkeypatch, home):
    a_connection(pid=dead_process()).write()
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:10/v1")
    text = complaint()
    assert "http://127.0.0.1:10/v1 (VLLM_BASE_URL): Nothing answers at this address" in text
    assert "Correct VLLM_BASE_URL" in text and "died" not in text and a_connection().path.exists()
    assert complaint(start=True) == text, "starting another server would not help"


@pytest.mark.parametrize("url", ["127.0.0.1:10", "nonsense", "http://", "ftp://127.0.0.1/v1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_no_crash(monkeypatch, url):
    monkeypatch.setenv("VLLM_BASE_URL", url)
    assert f"{url} (VLLM_BASE_URL)" in complaint()


def test_a_page_that_is_no_vllm_is_told_apart(monkeypatch, home):
    """A user may well name the port of JupyterLab."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(home)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = page.stdout.readline().split(" port ")[1].split()[0]
        for path, answer in [("models", "a page"), ("models", "{}"), ("models", '{"data": []}')]:
            (home / path).write_text(answer)
            monkeypatch.setenv("VLLM_BASE_URL", f"http://127.0.0.1:{port}")
            assert "not a vLLM server" in complaint()
        (home / "models").unlink()
        assert "knows no such model or route" in complaint()
    finally:
        page.kill()
        page.wait()


def test_a_dead_server_gets_its_obituary_and_its_file_is_removed(home):
    log = home / "log"
    log.write_text("INFO fine\nRuntimeError: DefaultCPUAllocator: can't allocate memory\n")
    dead = a_connection(log, pid=dead_process())
    dead.write()
    text = complaint()
    assert "The server at http://127.0.0.1:9/v1 has died: the machine ran out of memory" in text
    assert "connect(start=True)" in text and not dead.path.exists()


def test_a_dead_server_without_a_log_is_still_named(home):
    a_connection(home / "no-such-log", pid=dead_process()).write()
    assert "has died: its log is gone." in complaint()


def test_a_server_that_does_not_answer_is_named():
    a_connection().write()
    assert "http://127.0.0.1:9/v1 (connection file): Nothing answers at this address" in complaint()


def test_a_server_that_does_not_get_ready_in_time_is_named(home):
    a_connection(home / "log", state="starting").write()
    started = time.monotonic()
    text = complaint(wait=1)
    assert 1 <= time.monotonic() - started < 5
    assert f"did not get ready; its log is {home / 'log'}" in text


def test_a_server_that_ends_while_starting_is_no_crash(home):
    """Its keeper has removed the connection file."""
    connection = a_connection(home / "log", state="starting")
    connection.write()
    threading.Timer(1, connection.remove).start()
    started = time.monotonic()
    assert "has died: its log is gone" in complaint(wait=60)
    assert time.monotonic() - started < 10


def test_a_server_that_dies_while_starting_gets_its_obituary(home):
    starting = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (home / "log").write_text("OSError: [Errno 28] No space left on device")
    a_connection(home / "log", state="starting", pid=starting.pid).write()
    threading.Timer(1, starting.kill).start()
    assert "has died: the disk is full" in complaint(wait=60)
    starting.wait()


# --- servers that are Slurm jobs -----------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Sets what squeue says of job 12, in the form of the real one; by then the cluster has a node1."""
    monkeypatch.setattr(queue, "_states", {})
    monkeypatch.setattr(queue, "is_here", lambda: True)
    script = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "slurm", "any-model.sbatch")

    def says(state: str, reason: str = "None", nodes: str = "node1", end: str = "2026-11-20T14:57:28") -> None:
        times = ["2026-11-20T14:57:28"] * 2 + [end] if nodes else ["2026-11-20T14:57:28", "N/A", "N/A"]
        values = ["12", "12", str(os.getuid()), state, reason, "gpu", *times, "1:00", nodes, "any-model", script]
        (tmp_path / "squeue-says").write_text(SEPARATOR.join(values) if state else "")

    says("")
    commands(
        tmp_path,
        monkeypatch,
        squeue=f"cat {tmp_path}/squeue-says",
        sinfo="echo node1",
        sacct="exit 1",
        scontrol="exit 1",
    )
    return says


def a_job(home, state="ready", **files: str) -> Connection:
    folder = Job("12").folder
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / {"rank": "rank-0.log"}.get(name, name)).write_text(text)
    connection = a_connection(folder / "rank-0.log", node="node1", job_id="12", pid=None, state=state)
    connection.write()
    return connection


def test_a_job_that_is_over_is_buried_with_its_cause(home, slurm):
    connection = a_job(home, outcome="failed: a GPU ran out of memory. Lower MAX_MODEL_LEN.")
    slurm("FAILED", "NonZeroExitCode")
    text = complaint()
    assert "is gone: job 12 (any-model) has failed: a GPU ran out of memory. Lower MAX_MODEL_LEN." in text
    assert not connection.path.exists() and ".." not in text


def test_a_job_that_runs_and_is_out_of_reach_is_kept(home, slurm):
    connection = a_job(home)
    slurm("RUNNING")
    text = complaint()
    assert "Job 12 (any-model) is ready" in text and "cannot be reached from here" in text
    assert connection.path.exists()


def test_nothing_is_guessed_when_slurm_does_not_answer(home, slurm, monkeypatch, tmp_path):
    connection = a_job(home)
    commands(tmp_path, monkeypatch, squeue="echo Unable to contact >&2; exit 1")
    assert "whether job 12 still runs is not known" in complaint()
    assert connection.path.exists()


def test_a_job_that_is_starting_is_waited_for_and_its_phase_told(home, slurm, capsys):
    a_job(
        home,
        state="starting",
        rank="Starting to load model\nLoading safetensors checkpoint shards:  40% Completed | 2/5",
    )
    slurm("RUNNING")
    with pytest.raises(NoServerError, match=r"Job 12 \(any-model\) is loading weights 40%; its log is"):
        connect(wait=1)
    assert "Job 12 is loading weights 40% (0 s)" in capsys.readouterr().out


def test_a_job_that_ends_while_starting_is_not_waited_for(home, slurm):
    a_job(home, state="starting", outcome="failed: the port is taken. Unset PORT.")
    slurm("RUNNING")
    threading.Timer(0.5, slurm, ("FAILED",)).start()
    started = time.monotonic()
    assert "has failed: the port is taken. Unset PORT." in complaint(wait=60)
    assert time.monotonic() - started < 15


def test_a_job_in_the_queue_is_told_instead_of_no_server(home, slurm):
    slurm("PENDING", "Priority", nodes="")
    text = complaint()
    assert text.startswith("Job 12 (any-model) is pending: jobs of higher priority go first.")
    assert "slurm.wait()" in text and "make lab" not in text


def test_a_job_that_failed_lately_is_told_instead_of_no_server(home, slurm):
    a_job(home, outcome="failed: the port is taken. Unset PORT.").remove()
    slurm("FAILED", "NonZeroExitCode")
    assert "No server found" in complaint(), "it ended long ago"
    slurm("FAILED", "NonZeroExitCode", end=datetime.now().isoformat(timespec="seconds"))
    text = complaint()
    assert text.startswith("Job 12 (any-model) has failed: the port is taken. Unset PORT. Start one with")


@contextmanager
def serving(handler):
    """A server on loopback, ended also when the test fails: one whose socket is merely closed would spin for ever."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_a_proxy_is_for_servers_outside(monkeypatch, home):
    """Nodes of a cluster often have one in the environment, which reaches no other node."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(ClosesIdleConnections) as near:
        named = {"model": "tiny", "api_key": "k", "log": ""}
        client.client_for(Connection(f"http://127.0.0.1:{near.server_port}/v1", node="node1", **named), 5).models.list()
        with pytest.raises(openai.APIConnectionError):
            client.client_for(Connection(f"http://127.0.0.1:{near.server_port}/v1", **named), 5).models.list()


# --- what an error of a request means ------------------------------------------------------------------------------


REQUEST = httpx.Request("POST", "http://x/v1")


def status_error(kind: type, code: int, message: str) -> openai.APIStatusError:
    return kind(message, response=httpx.Response(code, request=REQUEST), body=None)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (openai.APITimeoutError(REQUEST), "pass a larger `timeout`"),
        (openai.APIConnectionError(request=REQUEST), "Nothing answers at this address"),
        (status_error(openai.AuthenticationError, 401, "Unauthorized"), "Use the key of this server"),
        (status_error(openai.NotFoundError, 404, "no model gpt"), "`client.models.list()` names its model"),
        (status_error(openai.BadRequestError, 400, "maximum context length is 2048"), "Shorten the prompt"),
        (status_error(openai.BadRequestError, 400, "temperature must be"), "refuses this request: temperature must be"),
        (status_error(openai.InternalServerError, 500, "EngineDeadError"), "The server failed: EngineDeadError"),
        (status_error(openai.InternalServerError, 500, "cannot schedule new futures after shutdown"), "is stopping"),
    ],
)
def test_every_error_of_a_request_has_its_sentence(error, meaning):
    assert meaning in explain(error)
    assert "\n" not in explain(error)


class ClosesIdleConnections(http.server.BaseHTTPRequestHandler):
    """Answers the first request of a connection and breaks off at a second one: a server tired of an idle client."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if getattr(self, "served", False):
            self.close_connection = True
            return
        self.served = True
        self.answer(b'{"object": "list", "data": []}')

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_connection_long_idle_is_not_used_again():
    """vLLM closes idle connections after 5 s; a request sent at that moment would be lost."""
    with serving(ClosesIdleConnections) as tired:
        connection = Connection(f"http://127.0.0.1:{tired.server_port}/v1", "tiny", "k", log="")
        asker = client.client_for(connection, timeout=10)
        asker.models.list()
        time.sleep(client.LIMITS.keepalive_expiry + 0.5)
        asker.models.list()
        with pytest.raises(openai.APIConnectionError):
            asker.models.list()


class TellsNoLogprobs(ClosesIdleConnections):
    """Answers a completion as servers do that are not vLLM and leave `logprobs` out."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(
            b'{"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [{"index": 0, "text": "a", "finish_reason": "length", "logprobs": null}]}'
        )


def test_a_server_that_tells_no_logprobs_is_named():
    with serving(TellsNoLogprobs) as other:
        asker = client.client_for(Connection(f"http://127.0.0.1:{other.server_port}/v1", "m", "k", log=""), timeout=10)
        with pytest.raises(LogprobsError, match="The server of m tells no logprobs"):
            served_odds(asker, "m", "The weather in Boston is")
