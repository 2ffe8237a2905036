"""The guard of a class's server: whose key it takes, and no file that upsets it."""

import asyncio
import os
import time

import pytest
from test_guard import KEY, RIGHT, is_refused, reached

from helpers import registered_keys
from helpers.guard import RequireKey
from helpers.registered_keys import FRESH, RegisteredKeys, digest_of, read

ADA = b"ada.x6mB3lT7aJr0Qe1xWk2vYc9uHs4nPd5g"


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("SERVE_CLASS", str(tmp_path))
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "ada").write_text(f"{digest_of(ADA)}\n")
    return folder


def ask(guard, *headers, path="/v1/completions", kind="http"):
    """What a client is sent, and the headers that the server behind the guard got."""
    sent, got = [], []

    async def behind(scope, receive, send):
        got.extend(scope["headers"])
        await send({"type": "reached"})

    async def send(message):
        sent.append(message)

    guard.app = behind
    asyncio.run(guard({"type": kind, "path": path, "headers": list(headers)}, None, send))
    return sent, got


def bearer(key: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + key)


def test_the_server_behind_sees_its_own_key_whichever_was_given(keys):
    sent, got = ask(RequireKey(None), (b"x-one", b"1"), bearer(ADA))
    assert reached(sent) and got == [(b"x-one", b"1"), RIGHT]
    sent, got = ask(RequireKey(None), RIGHT, path="/invocations")
    assert reached(sent) and got == [RIGHT], "its own key opens everything"


@pytest.mark.parametrize(
    "path", ["/invocations", "/scale_elastic_ep", "/sleep", "/", "/v1", "/v2/embed", "/metrics/", "//v1/x"]
)
def test_a_class_key_is_not_for_what_concerns_the_whole_server(keys, path):
    sent, _ = ask(RequireKey(None), bearer(ADA), path=path)
    assert sent[0]["status"] == 403


@pytest.mark.parametrize(
    "key",
    [b"", b"ada", b"ada.", ADA[:-1], ADA + b"x", ADA.upper(), b"bert" + ADA[3:], b"./ada" + ADA[3:], b"../keys/ada" + ADA[3:],
     b"ada\x00" + ADA[3:], b"\xff" * 5000, digest_of(ADA).encode(), b"ada." + digest_of(ADA).encode(), b"a" * 40 + ADA],
)  # fmt: skip
def test_what_is_no_registered_key_is_refused(keys, key):
    guard = RequireKey(None)
    assert is_refused(ask(guard, bearer(key))[0]) and is_refused(ask(guard, bearer(key), path="/invocations")[0])
    assert ask(guard, bearer(key), kind="websocket")[0] == [{"type": "websocket.close", "code": 1008}]
    assert reached(ask(guard, bearer(ADA), kind="websocket")[0])


def test_without_a_class_nobody_is_registered(keys, monkeypatch):
    monkeypatch.delenv("SERVE_CLASS")
    assert is_refused(ask(RequireKey(None), bearer(ADA))[0])


def test_who_registers_late_gets_in_and_who_is_removed_does_not_for_long(keys, monkeypatch):
    known, clock = RegisteredKeys(str(keys)), [time.monotonic()]
    monkeypatch.setattr(registered_keys.time, "monotonic", lambda: clock[0])
    late = b"bert.x6mB3lT7aJr0Qe1xWk2vYc9uHs4nPd5g"
    assert not asyncio.run(known.hold(late)) and asyncio.run(known.hold(ADA))
    (keys / "bert").write_text(digest_of(late))
    (keys / "ada").write_text("blocked")
    clock[0] += FRESH / 2
    assert asyncio.run(known.hold(late)) and asyncio.run(known.hold(ADA)), "what was right holds for a while"
    clock[0] += FRESH
    assert not asyncio.run(known.hold(ADA)) and asyncio.run(known.hold(late))


def test_files_that_are_no_digest_open_nothing_and_hold_nobody_up(keys, tmp_path):
    (tmp_path / "elsewhere").write_text(digest_of(ADA))
    os.mkfifo(keys / "pipe")
    (keys / "folder").mkdir()
    (keys / "link").symlink_to(tmp_path / "elsewhere")
    (keys / "long").write_bytes(digest_of(ADA).encode() + b"0" * 10**6)
    (keys / "bytes").write_bytes(b"\xff\xfe")
    (keys / "empty").touch()
    began = time.monotonic()
    for name in ("pipe", "folder", "link", "empty", "missing", "", ".", "..", "a/b"):
        assert read(str(keys), name) == "", name
    known = RegisteredKeys(str(keys))
    for name in ("pipe", "folder", "link", "long", "bytes", "empty", "missing"):
        assert not asyncio.run(known.hold(name.encode() + ADA[3:])), name
    assert time.monotonic() - began < 1


def test_a_person_is_known_by_who_owns_the_file(keys):
    """u1234 counts when uid 1234 wrote it, or the folder's owner; here the tests' own uid is both."""
    mine, others = f"u{os.getuid()}", f"u{os.getuid() + 1}"
    for name in (mine, others):
        (keys / name).write_text(digest_of(name.encode() + ADA[3:]))
        assert read(str(keys), name)
    if os.getuid() == 0:
        os.chown(keys / others, 4711, -1)
        assert not read(str(keys), others)
        os.chown(keys / others, os.getuid() + 1, -1)
        assert read(str(keys), others)
        os.chown(keys / "ada", 4711, -1)
        assert not read(str(keys), "ada"), "handed-out keys are the folder owner's"


def test_names_that_somebody_makes_up_do_not_fill_the_memory(keys, monkeypatch):
    monkeypatch.setattr(registered_keys, "REMEMBERED", 10)
    known = RegisteredKeys(str(keys))
    for number in range(50):
        asyncio.run(known.hold(b"n%d.x" % number))
    assert len(known._known) <= 10
