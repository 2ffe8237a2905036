"""A real server: how it starts, what it refuses, and that nothing of it is left, however it ends."""

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from helpers import client
from helpers.client import NoServerError, WrongKeyError, connect, explain
from helpers.server import Server, ServerError, start
from helpers.tiny import MODEL_DIR, MODEL_NAME

SECONDS_TO_VANISH = 15


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A WORKSHOP_HOME for one test, so that the run's own server is not found; and no other server either."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path))
    monkeypatch.setattr(client, "LOCALHOST", "http://localhost:9/v1")
    return tmp_path


class Family:
    """A process and all that it started: their sessions are noted while they live, and looked for afterwards."""

    def __init__(self, pid: int):
        self.members = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        self.sessions = {os.getsid(member.pid) for member in self.members} - {os.getsid(0)}

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                ours = process in self.members or os.getsid(process.pid) in self.sessions
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def named(self, part: str) -> psutil.Process:
        return next(process for process in self.members if part in " ".join(process.cmdline()))

    def vanishes(self) -> bool:
        """True when all are gone in time; what is left otherwise is killed, so that a failed test leaves nothing."""
        deadline = time.monotonic() + SECONDS_TO_VANISH
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            print(f"left: {process}")
            process.kill()
        return not left


def family_of(server: Server) -> Family:
    family = Family(server.keeper.pid)
    assert len(family.alive()) >= 3, "the keeper, the API server and the engine"
    return family


def connection_files(home: Path) -> list[Path]:
    return list((home / "servers").glob("*"))


# --- a server at work ---------------------------------------------------------------------------------------------


def test_it_answers_and_connect_finds_it(live_server, capsys):
    found = connect()
    assert (
        f"Connected to {MODEL_NAME} at {live_server.connection.base_url} (connection file)" in capsys.readouterr().out
    )
    reply = found.completions.create(model=MODEL_NAME, prompt="The capital of France is", max_tokens=1, temperature=0)
    assert reply.choices[0].text == " Paris"


def test_key_and_log_are_for_the_owner_alone(live_server):
    connection = live_server.connection
    assert connection.base_url.startswith("http://127.0.0.1:")
    for path in (connection.path, Path(connection.log)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(connection.api_key) >= 32
    assert connection.api_key not in Path(connection.log).read_text()
    titles = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    assert str(MODEL_DIR) in titles and connection.api_key not in titles


def test_a_wrong_key_is_named(live_server, monkeypatch):
    monkeypatch.setenv("VLLM_BASE_URL", live_server.connection.base_url)
    for key in ("wrong", ""):
        monkeypatch.setenv("VLLM_API_KEY", key)
        with pytest.raises(WrongKeyError, match=r"refuses this API key\. Use the key of this server"):
            connect(quiet=True)
    monkeypatch.setenv("VLLM_API_KEY", live_server.connection.api_key)
    assert connect(quiet=True).models.list().data[0].id == MODEL_NAME


@pytest.mark.parametrize(
    ("method", "route"),
    [("POST", "/invocations"), ("POST", "/tokenize"), ("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/docs")],
)  # fmt: skip
def test_every_route_but_health_asks_for_the_key(live_server, method, route):
    """vLLM's own --api-key guards /v1 alone."""
    address = live_server.connection.base_url.removesuffix("/v1")
    body = {"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 1} if method == "POST" else None
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer schl\xfcssel"}):
        assert httpx.request(method, address + route, json=body, headers=encoded(headers)).status_code == 401
    headers = {"Authorization": f"Bearer {live_server.connection.api_key}"}
    assert httpx.request(method, address + route, json=body, headers=headers).status_code == 200
    assert httpx.get(f"{address}/health").status_code == 200


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda c: c.completions.create(model=MODEL_NAME, prompt="word " * 3000, max_tokens=1),
        lambda c: c.completions.create(model=MODEL_NAME, prompt="word", max_tokens=5000),
        lambda c: c.chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": "word " * 3000}]),
    ],
    ids=["prompt", "max_tokens", "chat"],
)
def test_what_does_not_fit_the_context_is_named(live_server, request_of):
    with pytest.raises(openai.BadRequestError) as caught:
        request_of(connect(quiet=True))
    sentence = explain(caught.value)
    assert sentence.startswith("Prompt and answer do not fit in the model's context. Shorten the prompt or lower")
    assert "2048" in sentence and "\n" not in sentence


def test_other_refusals_are_named(live_server):
    connected = connect(quiet=True)
    with pytest.raises(openai.NotFoundError) as caught:
        connected.completions.create(model="gpt-9", prompt="Hello")
    assert "names its model" in explain(caught.value) and "gpt-9" in explain(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:
        connected.completions.create(model=MODEL_NAME, prompt="Hello", temperature=-1)
    assert "refuses this request" in explain(caught.value) and "temperature" in explain(caught.value)
    endless = {"ignore_eos": True}
    with pytest.raises(openai.APITimeoutError) as caught:
        connected.completions.create(
            model=MODEL_NAME, prompt="Hello", max_tokens=1500, n=32, timeout=0.05, extra_body=endless
        )
    assert "longer than the timeout" in explain(caught.value)


# --- what start refuses -------------------------------------------------------------------------------------------


def test_a_taken_port_is_named(live_server, home):
    port = int(live_server.connection.base_url.split(":")[-1].split("/")[0])
    with pytest.raises(ServerError, match=f"Port {port} is taken by another program. Leave the port out"):
        start(port=port, quiet=True)
    assert not connection_files(home)


def test_a_folder_without_a_model_is_named(home):
    with pytest.raises(ServerError, match=f"No model in {home}: it holds no config.json"):
        start(home, quiet=True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--no-such-flag"], "The server stopped: vLLM does not know --no-such-flag. `vllm serve --help=all`"),
        (["--max-model-len", "9999"], "reads at most 2048 tokens. Start with --max-model-len 2048 instead of 9999"),
    ],
)
def test_what_vllm_refuses_is_named_and_leaves_nothing(home, flags, sentence):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(ServerError) as caught:
        start(flags=flags, quiet=True)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not connection_files(home)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_full_disk_is_named(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk to fill")
    try:
        with suppress(OSError):
            (disk / "filler").write_bytes(bytes(2**20))
        program = "from helpers.server import main; import sys; sys.exit(main())"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=os.environ | {"WORKSHOP_HOME": str(disk)}, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"{disk} cannot be written (No space left on device). Free some space" in done.stderr
        assert done.stderr.count("\n") == 1
    finally:
        subprocess.run(["umount", disk], check=True)


# --- however it ends ----------------------------------------------------------------------------------------------


def test_stop_leaves_no_process_and_no_file(home):
    server = start(quiet=True)
    family = family_of(server)
    assert connection_files(home) == [server.connection.path]
    server.stop()
    assert not family.alive() and not connection_files(home)
    server.stop()  # twice is once


@pytest.mark.parametrize("victim", ["APIServer", "EngineCore", "keeper"])
def test_a_part_killed_takes_the_rest_along(home, victim):
    server = start(quiet=True)
    family = family_of(server)
    connection = server.connection
    if victim == "APIServer":
        process = family.named("vllm.entrypoints")
    else:
        process = family.named("VLLM::EngineCore" if victim == "EngineCore" else "helpers.keeper")
    process.kill()
    assert family.vanishes()
    server.keeper.wait(1)
    with pytest.raises(NoServerError, match=r"connect\(start=True\)") as caught:
        connect(quiet=True)
    assert "\n" not in str(caught.value)
    if victim == "keeper":
        assert f"The server at {connection.base_url} has died" in str(caught.value)
    assert not connection_files(home)
    with pytest.raises(openai.APIConnectionError) as refused:
        OpenAI(base_url=connection.base_url, api_key="x", max_retries=0).models.list()
    assert "the server has ended" in explain(refused.value)


def test_a_crashed_owner_takes_its_server_along(home):
    """The owner is what a notebook kernel is: a process that called connect(start=True)."""
    program = "from helpers.client import connect; connect(start=True); print('SERVING', flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    next(line for line in owner.stdout if "SERVING" in line)
    family = Family(owner.pid)
    assert len(family.alive()) >= 4 and connection_files(home)
    owner.kill()
    owner.wait()
    assert family.vanishes()
    assert not connection_files(home)


def test_a_keeper_that_nobody_listens_to_ends_quietly(home):
    command = [sys.executable, "-m", "helpers.keeper", "--model", str(MODEL_DIR)]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "importing vLLM" in keeper.stdout.readline()
    family = Family(keeper.pid)
    keeper.stdout.close()
    assert keeper.wait(SECONDS_TO_VANISH) == 1 and keeper.stderr.read() == ""
    assert family.vanishes() and not connection_files(home)


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_owner_that_ends_while_starting_leaves_nothing(home, blow):
    """Ctrl-C in `python -m helpers.server` half-way, and a crash."""
    command = [sys.executable, "-m", "helpers.server"]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (connection_files(home) and len(psutil.Process(owner.pid).children(recursive=True)) >= 2):
        assert owner.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    family = Family(owner.pid)
    owner.send_signal(blow)
    assert owner.wait(SECONDS_TO_VANISH) == (0 if blow == signal.SIGINT else -signal.SIGKILL)
    assert family.vanishes()
    assert not connection_files(home)
    assert "Traceback" not in owner.stderr.read()
