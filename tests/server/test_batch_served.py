"""Batches answered by vLLM: by the run's server, and in process; killed at any moment, and continued."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from helpers import batch, batch_command
from helpers.batch_files import CHAT, COMPLETIONS
from helpers.batch_job import StoppedError
from helpers.batch_output import errors_path, manifest_path, read_lines
from helpers.batch_server import AtServer
from helpers.client import client_for, connect
from helpers.server import start
from helpers.tiny import MODEL_NAME

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    text for topic in json.loads((ROOT / "helpers/tiny/questions.json").read_text())["topics"] for text in topic["ask"]
]
COMMAND = [sys.executable, "-m", "helpers.batch", "run"]
KILLS = 20


def chat(name, question, **options):
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 8, "temperature": 0} | options
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def completion(name, prompt, **options):
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0} | options
    return {"custom_id": name, "method": "POST", "url": COMPLETIONS, "body": body}


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory):
    """Requests whose greedy answers do not hang on a hair: what the small Llama has learned by heart."""
    lines = [chat(f"q{number}", question) for number, question in enumerate(QUESTIONS[:2000])]
    return write(tmp_path_factory.mktemp("batch") / "in.jsonl", lines)


@pytest.fixture(scope="module")
def undisturbed(two_thousand, live_server):
    """custom_id -> text of a run from beginning to end."""
    output = two_thousand.with_name("undisturbed.jsonl")
    batch.run(two_thousand, output, AtServer)
    return texts(output)


def texts(output):
    table = batch.answers(output)
    assert table["custom_id"].is_unique
    return dict(zip(table["custom_id"], table["text"], strict=True))


def answered(output):
    return output.read_bytes().count(b"\n") if output.exists() else 0


def started(*arguments, **variables):
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed_at(count, output, *arguments, **variables):
    """Start the command and kill -9 it once so many lines are answered; a run that ends before is fine too."""
    run = started(*arguments, **variables)
    family = [psutil.Process(run.pid)]
    while answered(output) < count and run.poll() is None:
        with suppress(psutil.NoSuchProcess):
            family += [child for child in family[0].children(recursive=True) if child not in family]
        time.sleep(0.01)
    time.sleep(random.random() / 10)
    run.kill()
    said, _ = run.communicate()
    assert run.returncode in (-signal.SIGKILL, 0), said[-3000:]
    return family


# --- killed and continued ------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_kill_9_at_twenty_moments_loses_and_doubles_nothing(two_thousand, undisturbed, tmp_path):
    """Against one server: a kill of the client is a kill of all that this command is."""
    output, chance = tmp_path / "out.jsonl", random.Random(7)
    for _ in range(KILLS):
        moment = answered(output) + chance.randint(1, 90)
        killed_at(moment, output, two_thousand, output, "--server", "--quiet", "--threads", "16")
    before = answered(output)
    assert KILLS < before < 2000
    run = started(two_thousand, output, "--server")
    said, _ = run.communicate()
    assert run.returncode == 0 and "2,000 of 2,000 lines are answered" in said, said[-3000:]
    assert answered(output) == 2000
    assert texts(output) == undisturbed
    runs = json.loads(manifest_path(output).read_text())["runs"]
    assert len(runs) == KILLS + 1
    assert abs(runs[-1]["answered"] - (2000 - before)) <= 1, "only what was left was asked"


@pytest.mark.timeout(900)
def test_kill_9_in_process_leaves_no_process_and_is_continued(two_thousand, undisturbed, tmp_path):
    """Killed with the engine and its worker in processes of their own, as on a GPU; continued with all in one."""
    output, apart = tmp_path / "out.jsonl", {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    family = killed_at(300, output, two_thousand, output, "--quiet", "--max-num-seqs", "32", **apart)
    assert len(family) >= 3, "this process, the engine and its worker"
    _, left = psutil.wait_procs(family, timeout=15)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    before = answered(output)
    assert 300 <= before < 2000
    run = started(two_thousand, output)
    said, _ = run.communicate()
    assert run.returncode == 0, said[-3000:]
    assert texts(output) == undisturbed
    (killed, last) = json.loads(manifest_path(output).read_text())["runs"]
    assert abs(last["answered"] - (2000 - before)) <= 1
    assert killed["flags"] == ["--max-num-seqs", "32"] and last["flags"] == [] and last["engine"] == "in process"
    assert last["versions"]["vllm"].startswith("0.32.0")


def test_told_to_stop_it_ends_at_once_with_status_3(two_thousand, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    run = started(two_thousand, output, "--server")
    while answered(output) < 100:
        time.sleep(0.05)
    run.terminate()
    began = time.monotonic()
    said, _ = run.communicate()
    assert run.returncode == batch_command.STOPPED_EARLY
    assert "Stopped as it was told to." in said and "of 2,000 lines are answered; the same command goes on" in said
    assert time.monotonic() - began < 10, "it does not wait for answers that it gives up"
    assert texts(output).items() <= undisturbed.items()


def test_a_server_that_dies_stops_the_run_and_another_goes_on(two_thousand, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    with start(quiet=True, private=True) as server:
        engine = AtServer(client_for(server.connection), patience=3)
        children = psutil.Process(server.keeper.pid).children(recursive=True)

        def kill(counts):
            if counts.answered > 200:
                for child in children:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()

        with pytest.raises(
            StoppedError, match=r"Nothing answers at this address.* of 2,000 lines are answered; the same"
        ):
            batch.run(two_thousand, output, engine, progress=kill)
        engine.close()
    assert 200 < answered(output) < 2000
    assert not errors_path(output).exists() or all(
        error["error"]["code"].startswith("http_5") for error in read_lines(errors_path(output))
    ), "that the server died is no error of a line"
    batch.run(two_thousand, output, AtServer)
    assert texts(output) == undisturbed


# --- bad lines -----------------------------------------------------------------------------------------------------

BAD = {
    "unknown": (chat("unknown", "Hello", max_token=3), "unknown_field", "max_token"),
    "long": (chat("long", "again " * 3000), "http_400", "do not fit in the model's context"),
    "hot": (chat("hot", "Hello", temperature=-1), "http_400", "temperature"),
    "other": (completion("other", "Hello", model="gpt"), "http_404", "names its model"),
    "form": (chat("form", "Hello", messages="Hello"), "http_400", "valid list"),
    None: ("{\n", "invalid_json", "no JSON"),
}


def test_bad_lines_are_named_and_good_lines_are_done(live_server, tmp_path, capsys, monkeypatch):
    good = [chat("a", "What is TP?"), completion("b", "The capital of France is", max_tokens=1)]
    requests = write(tmp_path / "in.jsonl", [good[0], *(line for line, _, _ in BAD.values()), good[1]])
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        assert batch_command.main(["run", str(requests), str(output), "--server"]) == batch_command.SOME_ERRORS
        assert "6 lines have errors. The same command asks them again." in capsys.readouterr().err
        assert texts(output)["b"] == " Paris"
        errors = {error["custom_id"]: error["error"] for error in read_lines(errors_path(output))}
        assert {name: error["code"] for name, error in errors.items()} == {
            name: code for name, (_, code, _) in BAD.items()
        }
        for number, (name, (_, _, words)) in enumerate(BAD.items(), 2):
            assert words in errors[name]["message"] and errors[name]["line"] == number


def test_status_0_and_the_words_at_the_end(live_server, tmp_path, capsys):
    requests = write(tmp_path / "in.txt", ["What is TP?\n"])
    command = ["run", str(requests), str(tmp_path / "out.jsonl"), "--server", "--body", '{"max_tokens": 5}']
    assert batch_command.main(command) == 0
    assert "out.jsonl: 1 of 1 lines are answered, " in capsys.readouterr().out
    requests.write_text("What is PP?\n")
    assert batch_command.main(command) == batch_command.REFUSED
    assert "is not what it was when" in capsys.readouterr().err


def test_no_server_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_BASE_URL", "http://localhost:9/v1")
    requests = write(tmp_path / "in.txt", ["What is TP?\n"])
    assert batch_command.main(["run", str(requests), str(tmp_path / "out.jsonl"), "--server"]) == batch_command.REFUSED
    assert "VLLM_BASE_URL" in capsys.readouterr().err


# --- in process, and vllm run-batch --------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_in_process_answers_are_those_of_the_server(live_server, tmp_path):
    """Fields, texts and log probabilities; what takes a server is refused by its line."""
    weather = "The weather in Boston is"
    lines = [
        *(chat(f"q{number}", question) for number, question in enumerate(QUESTIONS[:40])),
        chat("logprobs", QUESTIONS[0], logprobs=True, top_logprobs=3),
        completion("logprobs-old", weather, logprobs=2),
        completion("choice", weather, structured_outputs={"choice": ["sunny", "rainy"]}),
        completion("ids", [300, 400, 500]),
        completion("whole", weather, max_tokens=None),
        chat("no-limit", QUESTIONS[0], max_tokens=None),
        chat("stop", QUESTIONS[0], stop=["the"]),
        chat("two", QUESTIONS[1], n=2, temperature=1, seed=3),
        chat("named", QUESTIONS[1], model=MODEL_NAME),
    ]
    only_server = completion("prompts", ["a", "b"])
    bad = [line for line, _, _ in BAD.values()]
    requests = write(tmp_path / "in.jsonl", [*lines, only_server, *bad])
    run = started(requests, tmp_path / "here.jsonl")
    said, _ = run.communicate()
    assert run.returncode == batch_command.SOME_ERRORS, said[-3000:]
    errors = {error["custom_id"]: error["error"]["code"] for error in read_lines(errors_path(tmp_path / "here.jsonl"))}
    assert errors == {
        "prompts": "needs_server", "unknown": "unknown_field", "long": "invalid_request", "hot": "invalid_request",
        "other": "wrong_model", "form": "invalid_request", None: "invalid_json",
    }  # fmt: skip
    batch.run(requests, tmp_path / "there.jsonl", AtServer)
    here, there = bodies(tmp_path / "here.jsonl"), bodies(tmp_path / "there.jsonl")
    assert here.keys() == there.keys() - {"prompts"} == {line["custom_id"] for line in lines}
    for name, body in here.items():
        assert_same(body, there[name])


def bodies(output):
    return {result["custom_id"]: result["response"]["body"] for result in read_lines(output)}


def assert_same(ours, theirs, place=""):
    """Everything that ours holds, theirs holds too; fields that the server leaves empty may be missing."""
    if isinstance(ours, dict):
        assert ours.keys() <= theirs.keys(), place
        assert not any(theirs[key] for key in theirs.keys() - ours.keys() - {"system_fingerprint"}), place
        for key in ours.keys() - {"id", "created"}:
            assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=0.05), place
    else:
        assert ours == theirs, place


def test_the_server_at_hand_by_default(live_server):
    engine = AtServer(threads=2)
    assert engine.model == MODEL_NAME == connect(quiet=True).models.list().data[0].id
    assert engine.describe()["versions"] == {"vllm": "0.32.0"}
    engine.close()
