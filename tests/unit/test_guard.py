"""The guard in front of a server: nothing but /health without the key, and no input that upsets it."""

import asyncio
import json

import pytest

from helpers.guard import RequireKey

KEY = "ZylIWbd5gMWmqN_pSQCNLMwz79djWxUZ"
RIGHT = (b"authorization", f"Bearer {KEY}".encode())


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)


async def behind(scope, receive, send):
    """The server behind the guard: says that it was reached."""
    await send({"type": "reached"})


def ask(*headers: tuple[bytes, bytes], path: str = "/v1/completions", kind: str = "http") -> list[dict]:
    """What a client is sent, message by message."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = (
        {"type": kind}
        if kind == "lifespan"
        else {"type": kind, "path": path, "headers": list(headers), "method": "POST"}
    )
    asyncio.run(RequireKey(behind)(scope, None, send))
    return sent


def is_refused(sent: list[dict]) -> bool:
    return [message["type"] for message in sent] == ["http.response.start", "http.response.body"] and sent[0][
        "status"
    ] == 401


def reached(sent: list[dict]) -> bool:
    return sent == [{"type": "reached"}]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/invocations", "/metrics", "/tokenize", "/docs", "/", "/ping", "/sleep"]
)
def test_every_route_asks_for_the_key(path):
    assert is_refused(ask(path=path)) and reached(ask(RIGHT, path=path))


@pytest.mark.parametrize(
    "path", ["/health/", "//health", "/v1/../health", "/HEALTH", "/health/../invocations", "/healthy"]
)
def test_only_health_itself_is_open(path):
    assert is_refused(ask(path=path))
    assert reached(ask(path="/health"))


@pytest.mark.parametrize(
    "value",
    [
        b"", b"Bearer", b"Bearer ", KEY.encode(), b"Bearer wrong", f"Bearer {KEY} ".encode(), f"Bearer {KEY}x".encode(),
        f"Bearer {KEY[:-1]}".encode(), f"Basic {KEY}".encode(), f"Bearer  {KEY}".encode(), f"Bearer {KEY.lower()}".encode(),
        "Bearer schlüssel".encode(), b"Bearer \xff\xfe\x00", b"\xff" * 10_000,
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_whatever_its_bytes(value):
    assert is_refused(ask((b"authorization", value)))


def test_a_header_given_twice_opens_nothing_by_a_wrong_key_alone():
    wrong = (b"authorization", b"Bearer wrong")
    assert is_refused(ask(wrong, wrong)) and is_refused(ask(RIGHT, wrong))
    assert is_refused(ask((b"x-authorization", RIGHT[1]))) and is_refused(ask((b"cookie", RIGHT[1])))


def test_a_header_that_no_asgi_server_sends_is_not_taken_for_the_key():
    """ASGI names headers in lower case; what is not is no header of the client's."""
    assert is_refused(ask((b"Authorization", RIGHT[1])))


def test_the_refusal_is_json_that_names_the_reason():
    start, body = ask()
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/json" and headers[b"www-authenticate"] == b"Bearer"
    told = json.loads(body["body"])["error"]
    assert told["code"] == 401 and "API key" in told["message"] and KEY not in str(told)


def test_the_servers_start_and_end_pass():
    assert reached(ask(kind="lifespan"))


def test_a_websocket_without_the_key_is_closed():
    assert ask(kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert reached(ask(RIGHT, kind="websocket"))


@pytest.mark.parametrize("empty", [None, ""])
def test_a_guard_without_a_key_does_not_start(monkeypatch, empty):
    monkeypatch.setenv("VLLM_API_KEY", "") if empty == "" else monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(RuntimeError, match="needs the key in VLLM_API_KEY"):
        RequireKey(behind)


def test_the_key_is_read_once(monkeypatch):
    """What vLLM does to its environment later does not count."""
    guard = RequireKey(behind)
    monkeypatch.setenv("VLLM_API_KEY", "another")
    assert guard.expected == RIGHT[1]
