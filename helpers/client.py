"""Find the server and talk to it with the openai client.

`connect()` looks at VLLM_BASE_URL and VLLM_API_KEY, then at the newest connection file of a live server, then at
localhost:8000; it tries what it finds with one token, and says what it found or what is wrong and how to mend it.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import DefaultHttpxClient, OpenAI

from helpers import class_keys, connections, doctor, jobs, queue, server, storage
from helpers.class_keys import ClassKeyError
from helpers.connections import READY, Connection, home
from helpers.errors import WorkshopError

LOCALHOST = "http://localhost:8000/v1"
#: A server closes idle connections after 5 s; we let go first, else a request may run into the closing one and be lost.
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=2)
#: What an APIConnectionError comes from when there was a connection.
BROKEN = (ConnectionResetError, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
NOT_VLLM = "Something answers at this address, and it is not a vLLM server."
START_ONE = "Start one with `connect(start=True)`, or with `make lab` in a terminal."


class NoServerError(WorkshopError):
    """Nothing answers where a server could be."""


class WrongKeyError(WorkshopError):
    """A server is there and refuses the API key."""


def candidates() -> Iterator[tuple[str, Connection]]:
    """(where it was named, connection), in the order in which `connect` tries them."""
    key = os.environ.get("VLLM_API_KEY") or "none"
    if url := os.environ.get("VLLM_BASE_URL"):
        yield "VLLM_BASE_URL", Connection(url, model="", api_key=key, log="", state=READY)
        return  # named by hand: trying another server instead would only confuse
    for connection in connections.read_all():
        yield "connection file" if connection.is_ours else "the class's server", connection
    yield "the default address", Connection(LOCALHOST, model="", api_key=key, log="", state=READY)


def connect(*, start: bool = False, quiet: bool = False, timeout: float = 120, wait: float = 300) -> OpenAI:
    """An `openai.OpenAI` for the server at hand, tested with one token.

    `start`: where there is no server, start one on this machine that lives as long as this process.
    `timeout`: seconds for each request made with it; `wait`: seconds to wait for a server that is still starting.
    Raises NoServerError or WrongKeyError, whose one sentence names what was found and the mend.
    """
    problems: list[str] = []
    failure: type[WorkshopError] = NoServerError
    for source, connection in candidates():
        if not (connection.state == READY or _becomes_ready(connection, wait, quiet)):
            gone = connection.is_gone() or not connection.path.exists()
            problems.append(_obituary(connection) if gone else _still_starting(connection))
            continue
        try:
            client = client_for(connection, timeout)
            model = _try_one_token(client)
        except ClassKeyError as error:
            problems.append(f"{connection.base_url} ({source}): {error}")
            continue
        except (openai.APIError, AttributeError, IndexError, TypeError) as error:
            if connection.is_gone():  # asked only now: in a container the process may be out of sight and yet alive
                problems.append(_obituary(connection))
                continue
            refused = isinstance(error, openai.AuthenticationError)
            failure = WrongKeyError if refused else failure
            if refused or source != "the default address":
                cause = explain(error) if isinstance(error, openai.APIError) else NOT_VLLM
                if refused and not connection.api_key:
                    cause = class_keys.why_refused(connection.path.parents[1])
                if connection.job_id and isinstance(error, openai.APIConnectionError):
                    cause = _unreachable(connection)
                problems.append(f"{connection.base_url} ({source}): {cause}")
            continue
        if not quiet:
            print(f"Connected to {model} at {connection.base_url} ({source})")
        _explain_errors_in_notebooks()
        return client
    if os.environ.get("VLLM_BASE_URL"):
        raise failure(" ".join([*problems, "Correct VLLM_BASE_URL and VLLM_API_KEY, or unset both."]))
    coming, failed = _jobs()
    if start:
        if (coming or failed) and not quiet:
            print(*coming, *failed, "Here is a small server on this machine instead.")
        server.start(quiet=quiet)
        return connect(quiet=quiet, timeout=timeout)
    if coming:
        raise failure(" ".join([*problems, *coming, "`slurm.wait()` from helpers waits for it."]))
    problems += failed if not problems else []
    if (shared := connections.class_folder()) and (shut_out := storage.shut_out(shared)):
        problems.append(shut_out)
    places = f"VLLM_BASE_URL is not set, {home() / 'servers'} names no server, and {LOCALHOST} does not answer."
    raise failure(" ".join([*(problems or ["No server found:", places]), START_ONE]))


def client_for(connection: Connection, timeout: float = 120) -> OpenAI:
    """A client for this server, untested; `timeout` in seconds holds for each request.

    No retries: a request that timed out is still being computed, and a second one would only add to the load.

    A server that a connection file names is on this machine or cluster, where a proxy would only be in the way. For a class's
    server the key is one's own, made and registered if need be: raises ClassKeyError where that cannot be done.
    """
    key = connection.api_key or class_keys.own(connection.path.parents[1])
    http = DefaultHttpxClient(limits=LIMITS, timeout=timeout, trust_env=not connection.node)
    return OpenAI(base_url=connection.base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http)


def root_of(client: OpenAI) -> str:
    """The server's address without the /v1 at its end: /metrics and vLLM's other own routes lie beside it, not below."""
    return str(client.base_url).rstrip("/").removesuffix("/v1")


def _try_one_token(client: OpenAI) -> str:
    model = client.models.list().data[0].id
    client.completions.create(model=model, prompt="Hello", max_tokens=1)
    return model


def _still_starting(connection: Connection) -> str:
    if status := _job_status(connection):
        return f"{_sentence(status)}{_whose_log(connection)}."
    return f"The server at {connection.base_url} did not get ready{_whose_log(connection)}."


def _whose_log(connection: Connection) -> str:
    return f"; its log is {connection.log}" if connection.log else ": ask your instructor, whose it is"


def _obituary(connection: Connection) -> str:
    """Why a dead server died, by its log or its Slurm job; its connection file is removed."""
    connection.remove()
    if not connection.is_ours:
        return f"The class's server at {connection.base_url} has ended: ask your instructor for the next one."
    if connection.job_id and (status := _job_status(connection)):
        return f"The server at {connection.base_url} is gone: {str(status).rstrip('.')}."
    try:
        with open(connection.log, errors="replace") as log:
            cause = doctor.diagnose(log.read())
    except OSError:
        cause = "its log is gone."
    return f"The server at {connection.base_url} has died: {cause}"


def _job_status(connection: Connection) -> jobs.Status | None:
    """Where the server's job stands; None for a server without a job, or when Slurm does not say."""
    try:
        return jobs.status(connection.job_id) if connection.job_id and queue.is_here() else None
    except WorkshopError:
        return None


def _sentence(status: jobs.Status) -> str:
    text = str(status).rstrip(".")
    return text[0].upper() + text[1:]


def _unreachable(connection: Connection) -> str:
    if status := _job_status(connection):
        return (
            f"{_sentence(status)}, and cannot be reached from here. Run this notebook on the cluster that runs the job."
        )
    return f"Nothing answers at this address, and whether job {connection.job_id} still runs is not known here: ask `squeue`."


def _jobs() -> tuple[list[str], list[str]]:
    """Sentences on this user's deployments: those on their way, and, when there is none, the last one if it failed lately."""
    if not queue.is_here():
        return [], []
    try:
        found = jobs.mine(ended=True, patience=5)
        statuses = [jobs.assess(jobs.handle(record), record) for record in found if not record.is_over]
        coming = [status for status in statuses if status.phase in jobs.PHASES and status.phase != jobs.READY]
        if coming or not found or not _ended_lately(found[0]):
            return [f"{_sentence(status)}." for status in coming], []
        last = jobs.assess(jobs.handle(found[0]), found[0])
        return [], [f"{_sentence(last)}."] if last.phase == jobs.FAILED else []
    except queue.SlurmError:
        return [], []


def _ended_lately(record: queue.Record, minutes: float = 60) -> bool:
    with suppress(ValueError):
        return record.is_over and (datetime.now() - datetime.fromisoformat(record.end)).total_seconds() < minutes * 60
    return False


def _becomes_ready(connection: Connection, wait: float, quiet: bool) -> bool:
    """Wait for another process to finish starting this server."""
    started = time.monotonic()
    while time.monotonic() - started < wait and not connection.is_gone() and connection.path.exists():
        with suppress(OSError):  # it may be removed between two looks
            connection.state = connections.read(connection.path).state
        if connection.state == READY:
            return True
        if not quiet:
            print(f"\r{_how_far(connection)} ({time.monotonic() - started:.0f} s)   ", end="", flush=True)
        time.sleep(0.5)
    return False


def _how_far(connection: Connection) -> str:
    if not connection.job_id:
        return "The server is still starting"
    phase, percent = jobs.phase_of(jobs.tail(Path(connection.log)))
    return f"Job {connection.job_id} is {phase}" + ("" if percent is None else f" {percent}%")


def explain(error: Exception) -> str:
    """One sentence for what a request raised, with the mend."""
    text = str(getattr(error, "message", error))
    if isinstance(error, openai.APITimeoutError):
        return "The server took longer than the timeout. Ask for fewer tokens, or pass a larger `timeout`."
    if isinstance(error, openai.APIConnectionError) and isinstance(error.__cause__, BROKEN):
        return "The connection broke before the answer was whole: the server has died or was stopped. Connect again, and ask again."
    if isinstance(error, openai.APIConnectionError):
        return "Nothing answers at this address: the server has ended or was never started."
    if isinstance(error, openai.AuthenticationError):
        return "The server refuses this API key. Use the key of this server: unset VLLM_API_KEY, or copy it from the connection file."
    if isinstance(error, openai.NotFoundError):
        return f"The server knows no such model or route. `client.models.list()` names its model. It said: {text}"
    if isinstance(error, openai.BadRequestError) and re.search("maximum context length|max_model_len", text):
        return f"Prompt and answer do not fit in the model's context. Shorten the prompt or lower max_tokens. The server said: {text}"
    if isinstance(error, openai.BadRequestError):
        return f"The server refuses this request: {text}"
    if "after shutdown" in text:  # vLLM 0.32: cannot schedule new futures after shutdown
        return "The server is stopping: it finishes what it has and takes nothing new. Start another, or wait for the next."
    if re.search("EngineCore|EngineDead", text):  # what vLLM says into every stream when its engine process has died
        said = text.partition(" See stack trace")[0].rstrip(".")  # it stands in the log
        return f"The server failed: {said}. Its engine has died, and the server ends with it; its log says why."
    return f"The server failed: {text}"


def _explain_errors_in_notebooks() -> None:
    """In IPython, show `explain(error)` for an openai error instead of its long traceback."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]  # where IPython is running
    except NameError:
        return

    def show(shell: Any, kind: type, error: Exception, traceback: object, tb_offset: int | None = None) -> list[str]:
        lines = [f"{kind.__name__}: {explain(error)}"]
        shell._showtraceback(kind, error, lines)
        return lines

    shell.set_custom_exc((openai.APIError,), show)
