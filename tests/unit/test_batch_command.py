"""The command `python -m helpers.batch`: what it takes, what it says, its exit status. The engine repeats prompts."""

import json
import signal
import threading

import pytest
from test_batch import Echo, names

from helpers import batch_command
from helpers.batch_command import REFUSED, SOME_ERRORS, STOPPED_EARLY, Progress, describe, main
from helpers.batch_files import Defaults
from helpers.batch_job import Counts, Shard, StoppedError
from helpers.batch_output import errors_path, manifest_path, read_lines


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(lines, *options) -> exit status; `run.engine` is the engine that the command gets."""
    monkeypatch.chdir(tmp_path)

    def run_it(text, *options):
        (tmp_path / "in.txt").write_text(text)
        return main(["run", "in.txt", "out.jsonl", *options])

    run_it.engine = Echo()
    monkeypatch.setattr(batch_command, "_engine", lambda options: run_it.engine)
    return run_it


def test_all_well(run, capsys, tmp_path):
    assert run("one\ntwo\n") == 0
    assert "out.jsonl: 2 of 2 lines are answered, " in capsys.readouterr().out
    assert run("one\ntwo\n") == 0
    assert capsys.readouterr().out == "out.jsonl: 2 of 2 lines are answered.\n"


def test_some_errors(run, capsys):
    assert run("one\nbad\n") == SOME_ERRORS
    said = capsys.readouterr()
    assert "1 of 2 lines are answered" in said.out
    assert "out.errors.jsonl: 1 lines have errors. The same command asks them again." in said.err


def test_stopped_early_and_refused(run, capsys):
    run.engine = Echo(room=2, dies_after=3)
    assert run("one\n" * 9) == STOPPED_EARLY
    assert "The engine has died. " in capsys.readouterr().err
    assert run("two\n" * 9) == REFUSED
    assert "is not what it was when" in capsys.readouterr().err


def test_defaults_reach_the_requests(run, tmp_path):
    assert run("one\n", "--body", '{"max_tokens": 3}', "--seed", "7", "--quiet") == 0
    said = json.loads(manifest_path(tmp_path / "out.jsonl").read_text())["defaults"]
    assert said == {"url": "/v1/chat/completions", "column": "prompt", "body": {"max_tokens": 3}, "seed": 7}
    assert said == vars(Defaults(body={"max_tokens": 3}, seed=7))


@pytest.mark.parametrize(
    "options",
    [
        ["--shard", "4/4"], ["--shard", "a"], ["--body", "[1]"], ["--body", "{"], ["--server", "--max-num-seqs", "8"],
        ["--server", "--model", "x"],
    ],
)  # fmt: skip
def test_options_that_make_no_sense(run, options, capsys):
    with pytest.raises(SystemExit) as caught:
        run("one\n", *options)
    assert caught.value.code == REFUSED
    assert not names_if_any()


def names_if_any():
    try:
        return names("out.jsonl")
    except FileNotFoundError:
        return []


def test_flags_for_vllm_are_handed_on(tmp_path, monkeypatch):
    from helpers import batch_vllm

    seen = []
    monkeypatch.setattr(batch_vllm.InProcess, "start", lambda model, flags: seen.append((str(model), flags)) or Echo())
    (tmp_path / "in.txt").write_text("one\n")
    command = ["run", str(tmp_path / "in.txt"), str(tmp_path / "out.jsonl"), "--model", "m"]
    assert main([*command, "--max-num-seqs", "8", "--", "--no-enable-prefix-caching"]) == 0
    assert seen == [("m", ["--max-num-seqs", "8", "--no-enable-prefix-caching"])]


def test_shards_and_merge(run, capsys, tmp_path):
    text = "one\ntwo\nbad\n"
    assert run(text, "--shard", "0/2") == SOME_ERRORS
    assert main(["merge", "out.jsonl"]) == STOPPED_EARLY
    assert main(["merge", "out.jsonl", "--when-complete"]) == 0
    assert "Not merged yet: out.1-of-2.jsonl is not begun." in capsys.readouterr().out
    assert run(text, "--shard", "1/2") == 0
    assert main(["merge", "out.jsonl", "--when-complete"]) == SOME_ERRORS
    assert sorted(names(tmp_path / "out.jsonl")) == ["line-1", "line-2"]
    assert [error["error"]["line"] for error in read_lines(errors_path(tmp_path / "out.jsonl"))] == [3]
    assert main(["merge", "other.jsonl"]) == REFUSED


def test_a_signal_stops_the_run_and_its_handlers_go(run, capsys):
    before = signal.getsignal(signal.SIGTERM)

    class Told(Echo):
        def finished(self):
            signal.raise_signal(signal.SIGTERM)
            return super().finished()

    run.engine = Told(room=2)
    assert run("one\n" * 9) == STOPPED_EARLY
    assert "Stopped as it was told to." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_model_loads_ends_the_load(run, monkeypatch, capsys):
    def load(options):
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(30)

    monkeypatch.setattr(batch_command, "_engine", load)
    assert run("one\n") == STOPPED_EARLY
    assert "0 of 1 lines are answered" in capsys.readouterr().err


def test_how_far_it_is_in_words():
    counts = Counts(lines=2000, before=200, answered=997, errors=3, output_tokens=16_240, seconds=20)
    assert describe(counts) == "1,200 of 2,000 lines (60%), 3 errors, 812 tokens/s, 16 s left"
    assert describe(Counts(lines=10)) == "0 of 10 lines (0%)"
    assert "2 h 46 min left" in describe(Counts(lines=1001, answered=1, seconds=10))
    assert "1 min 30 s left" in describe(Counts(lines=10, answered=1, seconds=10))


def test_progress_is_a_line_every_ten_seconds_in_a_log(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(batch_command.time, "monotonic", lambda: now[0])
    progress = Progress()
    for now[0] in range(25):
        progress(Counts(lines=100, answered=now[0]))
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "10 of 100 lines (10%), 0 s left",
        "20 of 100 lines (20%), 0 s left",
    ]


def test_shards_divide_the_lines():
    shards = [Shard(index, 3) for index in range(3)]
    assert all(sum(shard.has(line) for shard in shards) == 1 for line in range(1, 20))


def test_a_stopped_run_is_a_workshop_error_of_one_sentence():
    assert str(StoppedError("It ended.")) == "It ended."
