"""Many requests to a real server: the records agree with what it says itself, and every fault has its name.

The faults are a proxy's (see fault_proxy.py), but for the worst one: a server that is killed in the middle.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

import openai
import psutil
import pytest
from fault_proxy import STALL_SECONDS, fault_proxy

from helpers import load_async, load_stats, metrics
from helpers.client import client_for, connect, explain
from helpers.connections import Connection
from helpers.load import send_many
from helpers.load_records import read
from helpers.server import start
from helpers.tiny import MODEL_NAME

PROMPT = "San Francisco is a"  # goes on for some thirty tokens that are sure
FIXED = {"temperature": 0, "ignore_eos": True}  # the same text each time, and as long as max_tokens says
PATIENCE = 4  # seconds until a stall is given up; a token takes a hundredth of that


def send_async(client, requests, threads=4, **options):
    return asyncio.run(load_async.send_many(client, requests, concurrency=threads, **options))


both = pytest.mark.parametrize("send", [send_many, send_async])


@pytest.fixture
def client(live_server):
    return connect(quiet=True)


@pytest.fixture
def spoiled(client):
    """A client whose requests go through the proxy, and what faults they asked for."""
    with fault_proxy(str(client.base_url)) as (url, seen):
        connection = Connection(url, MODEL_NAME, client.api_key, log="", node="here")
        yield client_for(connection), seen


def fault(name: str, **more) -> dict:
    return {"prompt": PROMPT, "user": name, "max_tokens": 12, **FIXED, **more}


# --- what the records say -----------------------------------------------------------------------------------------


@both
def test_the_answers_are_those_of_the_openai_client_in_the_order_of_the_requests(client, send):
    prompts = [PROMPT, "My favorite color is", "The die shows", PROMPT] * 3
    run = send(client, prompts, threads=4, max_tokens=12, temperature=0)
    plain = {p: client.completions.create(model=MODEL_NAME, prompt=p, max_tokens=12, temperature=0) for p in prompts}
    assert run.texts == [plain[prompt].choices[0].text for prompt in prompts], "duplicates as well"
    assert [record.index for record in run] == list(range(12)) and not run.failures
    for record, prompt in zip(run, prompts, strict=True):
        usage, tokens = plain[prompt].usage, plain[prompt].usage.completion_tokens
        assert (record.prompt_tokens, record.output_tokens) == (usage.prompt_tokens, tokens)
        assert record.finish_reason == plain[prompt].choices[0].finish_reason and record.attempts == 1
        assert 0 < record.ttft <= record.e2e and record.ttft + sum(record.itl) == pytest.approx(record.e2e)
        assert 1 <= len(record.itl) + 1 <= tokens and record.tpot == pytest.approx(
            (record.e2e - record.ttft) / (tokens - 1)
        )
    assert max(record.ended for record in run) <= run.seconds


@both
def test_a_chat_is_a_request_as_well(client, send):
    messages = [{"role": "user", "content": "What is continuous batching?"}]
    run = send(client, [{"messages": messages, "max_tokens": 40}], temperature=0)
    plain = client.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=40, temperature=0)
    assert run.texts == [plain.choices[0].message.content]
    assert run[0].output_tokens == plain.usage.completion_tokens


def test_the_server_counts_the_same_tokens(client):
    before = metrics.snapshot(client)
    run = send_many(client, [{"prompt": PROMPT, "max_tokens": n} for n in range(1, 9)], threads=8, **FIXED)
    assert [record.output_tokens for record in run] == list(range(1, 9))
    deadline = time.monotonic() + 30
    while (now := metrics.snapshot(client)).generation_tokens < before.generation_tokens + 36 or now.running:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    assert now.generation_tokens - before.generation_tokens == 36


def test_never_more_in_flight_than_threads_and_seldom_fewer(client):
    run = send_many(client, [PROMPT] * 24, threads=6, max_tokens=16, **FIXED)
    assert load_stats.in_flight(run).max() <= 6
    assert {record.worker for record in run} <= set(range(6))
    assert load_stats.littles_law(run).iloc[0] > 3


def test_the_fifth_of_four_threads_waits_for_the_first_that_is_done(client):
    run = send_many(client, [PROMPT] * 5, threads=4, max_tokens=32, **FIXED)
    assert min(record.ended for record in run[:4]) <= run[4].started


def test_a_fixed_batch_waits_for_its_slowest(client):
    requests = [{"prompt": PROMPT, "max_tokens": n} for n in (4, 64, 4, 4, 64, 4)]
    run = send_many(client, requests, threads=2, fixed_batches=True, **FIXED)
    for batch in (2, 4):
        assert min(r.started for r in run[batch : batch + 2]) >= max(r.ended for r in run[:batch])
    queued = send_many(client, requests, threads=2, **FIXED)
    assert queued[2].started < queued[1].ended, "a queue goes on beside the long one"


@both
def test_open_loop_sends_when_it_is_due_and_the_wait_for_a_thread_is_seen(client, send):
    run = send(client, [PROMPT] * 4, threads=1, max_tokens=64, arrivals=[0, 0.001, 0.002, 0.003], **FIXED)
    assert [record.arrived for record in run] == [0, 0.001, 0.002, 0.003]
    assert all(later.started >= earlier.ended for earlier, later in zip(run, run[1:], strict=False))


def test_a_file_holds_what_memory_would(client, tmp_path):
    path = tmp_path / "run.jsonl"
    run = send_many(client, [PROMPT] * 6, threads=2, max_tokens=5, to=path, **FIXED)
    assert run.done == 6 and len(run) == 0 and [record.output_tokens for record in read(path)] == [5] * 6


# --- what goes wrong ----------------------------------------------------------------------------------------------


@both
def test_one_request_over_the_context_fails_alone_and_once(client, send):
    run = send(client, [PROMPT, "again " * 3000, {"prompt": PROMPT, "max_tokens": 5000}, PROMPT], max_tokens=5, **FIXED)
    assert [record.ok for record in run] == [True, False, False, True]
    assert all("do not fit in the model's context" in run[i].error and run[i].attempts == 1 for i in (1, 2))


@both
def test_a_wrong_model_is_named_in_each_failure(client, send):
    run = send(client, [PROMPT, {"prompt": PROMPT, "model": MODEL_NAME}], model="gpt-x", max_tokens=5)
    assert "knows no such model" in run[0].error and "gpt-x" in run[0].error and run[1].ok


@both
def test_a_wrong_key_is_named(client, send):
    run = send(client.with_options(api_key="guess"), [PROMPT], model=MODEL_NAME, max_tokens=5)
    assert "refuses this API key" in run[0].error and run[0].attempts == 1


@both
@pytest.mark.parametrize(
    ("name", "said", "attempts"),
    [
        ("busy", "the gateway is busy", 2),
        ("failing", "The server failed: the gateway is failing", 2),
        ("forbidden", "the gateway is forbidden", 1),
        ("page", "is no stream of events: <html><body>Please log in.", 1),
        ("garbled", 'no answer of the API: {"choices": [{"text": "half a pie', 1),
        ("foreign", 'no answer of the API: {"generated_text": "another API"}', 1),
        ("cut", "The connection broke before the answer was whole", 2),
        ("ended", "The connection broke before the answer was whole", 2),
        ("reset", "The connection broke before the answer was whole", 2),
        ("reported", "Its engine has died, and the server ends with it", 2),
        ("stall", "The server took longer than the timeout", 1),
        ("mute", "The server took longer than the timeout", 1),
    ],
)
def test_a_fault_fails_its_request_alone_and_is_named(spoiled, send, name, said, attempts):
    client, seen = spoiled
    if name in ("stall", "mute"):
        client = client.with_options(timeout=PATIENCE)
    began = time.monotonic()
    run = send(client, [fault(""), fault(name), fault("")], threads=3, model=MODEL_NAME, tries=2)
    assert time.monotonic() - began < STALL_SECONDS
    assert [record.ok for record in run] == [True, False, True], run
    assert said in run[1].error and "\n" not in run[1].error
    assert run[1].attempts == seen[name] == attempts
    streamed = name in ("garbled", "foreign", "cut", "ended", "reported", "stall")
    assert bool(run[1].text) == (run[1].ttft > 0) == streamed, "what came before the fault is kept"


@both
@pytest.mark.parametrize("name", ["busy:2", "failing:1", "cut:1", "reset:1"])
def test_what_passes_is_tried_again_until_it_does(spoiled, send, name):
    client, _ = spoiled
    run = send(client, [fault(name)], model=MODEL_NAME)
    assert run[0].ok and run[0].attempts == 1 + int(name.partition(":")[2])
    assert run[0].output_tokens == 12 and 1 <= len(run[0].itl) + 1 <= 12, "nothing of the broken try is left"
    assert run[0].ttft > 0.5, "timed from its first sending: that is how long its user waits"


@both
@pytest.mark.parametrize("name", ["crlf", "crumbs", "slow"])
def test_an_unusual_stream_is_read_all_the_same(spoiled, send, name):
    client, _ = spoiled
    run = send(client, [fault(""), fault(name)], model=MODEL_NAME)
    assert not run.failures and run[0].text == run[1].text and run[1].output_tokens == 12
    assert name != "slow" or max(run[1].itl) > 0.9, "a pause is one long gap"


def test_the_openai_clients_own_stream_is_explained_too(spoiled):
    """As the chat panel of lesson 03 shows it."""
    client, _ = spoiled
    for name, said in [("cut", "The connection broke"), ("reported", "Its engine has died")]:
        asked = {"model": MODEL_NAME, "prompt": PROMPT, "user": name, "max_tokens": 12, "stream": True}
        with pytest.raises(openai.APIError) as caught:
            for _ in client.completions.create(**asked, extra_body={"ignore_eos": True}):
                pass
        assert said in explain(caught.value)


# --- what ends in the middle --------------------------------------------------------------------------------------

SCRIPT = """
import sys
from helpers.client import connect
from helpers.load import send_many
requests = [{"prompt": "A", "max_tokens": 4}] * 6 + [{"prompt": "A", "max_tokens": 2000}] * 50
run = send_many(connect(quiet=True), requests, threads=4, ignore_eos=True, **eval(sys.argv[1]))
print(run.interrupted, run.done, run.failed, sorted(record.output_tokens for record in run))
"""


@pytest.mark.parametrize("to_file", [False, True])
def test_ctrl_c_keeps_what_has_finished_and_leaves_nothing_running(client, tmp_path, to_file):
    options = {"to": f"{tmp_path}/run.jsonl"} if to_file else {}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, repr(options)], stdout=subprocess.PIPE, text=True)
    before = metrics.snapshot(client).generation_tokens
    while metrics.snapshot(client).generation_tokens < before + 100:  # the short ones are done
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[0]
    kept = [] if to_file else [4] * 6
    assert said.splitlines() == ["Stopped by Ctrl-C: the 6 requests that had finished are kept.", f"True 6 0 {kept}"]
    assert not to_file or [record.output_tokens for record in read(tmp_path / "run.jsonl")] == [4] * 6
    deadline = time.monotonic() + 20
    while metrics.snapshot(client).running:  # the server has noticed, too
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_does_not_wait_for_a_server_that_says_nothing(spoiled):
    client, seen = spoiled

    def interrupt():
        while seen["mute"] < 3:
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    run = send_many(client, [fault(""), *[fault("mute")] * 9], threads=3, model=MODEL_NAME)
    assert time.monotonic() - began < STALL_SECONDS / 2
    assert run.interrupted and len(run) == 1 and run[0].ok


def test_a_server_that_is_killed_in_the_middle(tmp_path, monkeypatch):
    """First its engine, which it notices itself, then all of it: what had finished is there, the rest has its cause."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path))
    with start(quiet=True, private=True) as server:
        client = client_for(server.connection, timeout=60)
        family = psutil.Process(server.keeper.pid).children(recursive=True)
        engine = next(process for process in family if "EngineCore" in " ".join([process.name(), *process.cmdline()]))
        requests = [{"prompt": PROMPT, "max_tokens": 8 if i < 12 else 1900} for i in range(60)]
        done = threading.Event()

        def kill():
            while metrics.snapshot(client).generation_tokens < 12 * 8 + 200:
                time.sleep(0.1)
            engine.kill()
            done.set()

        threading.Thread(target=kill, daemon=True).start()
        began = time.monotonic()
        run = send_many(client, requests, threads=4, tries=2, **FIXED)
        assert done.is_set() and time.monotonic() - began < 120
    assert len(run) == 60 and all(record.ok and record.output_tokens == 8 for record in run[:12])
    assert all(not record.ok for record in run[12:])
    causes = {record.error for record in run.failures}
    known = ("Its engine has died", "The connection broke", "Nothing answers", "is stopping")
    assert all(any(words in cause for words in known) for cause in causes), causes
    assert any("Nothing answers" in cause for cause in causes), "those that came after the end"
    assert any(record.text for record in run[12:16]), "what had come of the broken ones is kept"


# --- a class ------------------------------------------------------------------------------------------------------


def rehearse(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "helpers.load", "--participants", "6", "--think-time", "2", "--duration", "5"]
    return subprocess.run(
        [*command, "--max-tokens", "24", *options], capture_output=True, text=True, timeout=300, env=os.environ
    )


def test_a_class_that_fits_is_go(client):
    done = rehearse("--ttft", "60", "--ttft-together", "60", "--tpot", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GO: no question failed" in done.stdout and "NO-GO" not in done.stdout
    assert "all at once" in done.stdout and "requests running and" in done.stdout


def test_a_class_that_does_not_is_no_go_with_the_reason(client):
    done = rehearse("--ttft", "0.0001", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["go"] is False and len(report["reasons"]) >= 1
    assert "for an answer to begin (chatting); the limit is 0.0001 s." in report["reasons"][0]
    chatting, together = report["phases"]["chatting"], report["phases"]["all at once"]
    assert chatting["questions"] >= 6 and together["questions"] == 6
    assert chatting["failed"] == together["failed"] == 0
    assert 0 < together["ttft"]["p50"] <= together["ttft"]["p95"] <= together["ttft"]["p99"]
    assert 1 <= report["server"]["running"] <= 6 and report["server"]["waiting"] >= 0


def test_without_a_server_there_is_no_verdict(monkeypatch):
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:9/v1")
    done = rehearse()
    assert done.returncode == 2 and "Nothing answers at this address" in done.stderr and done.stdout == ""
