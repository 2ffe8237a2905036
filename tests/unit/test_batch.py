"""Runs of a batch, continued after every kind of end. The engine here repeats prompts: what is tested is what lies around
an engine. tests/server/test_batch_served.py does the same with vLLM."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import batch, batch_merge
from helpers.batch_files import Defaults, InputError, LineError
from helpers.batch_job import BatchError, Shard, StoppedError
from helpers.batch_output import Answer, OutputError, Results, errors_path, manifest_path, read_lines

LINES = 50


class Echo:
    """Answers a prompt with itself, in an order of its own; fails at "bad", and dies after so many answers."""

    model = "echo"

    def __init__(self, room=8, dies_after=None):
        self.room, self.dies_after, self.waiting, self.asked = room, dies_after, [], 0

    def describe(self):
        return {"engine": "echo"}

    def submit(self, request):
        if "top_q" in request.body:
            raise LineError("unknown_field", "unknown fields in the body: top_q")
        self.waiting.append(request)
        self.asked += 1

    def finished(self):
        if self.dies_after is not None and self.asked > self.dies_after:
            raise StoppedError("The engine has died.")
        taken, self.waiting = self.waiting[1::2] or self.waiting, self.waiting[::2] if len(self.waiting) > 1 else []
        return [self._answer(request) for request in taken]

    def _answer(self, request):
        text = request.body["messages"][0]["content"]
        if text == "bad":
            return LineError(
                "http_400", "no", line=request.line, custom_id=request.custom_id, response={"status_code": 400}
            )
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return Answer(request.line, request.custom_id, {"id": "x", "choices": [choice], "usage": usage})

    def abandon(self):
        self.waiting.clear()

    def close(self):
        self.abandon()


@pytest.fixture
def paths(tmp_path):
    requests = tmp_path / "in.txt"
    requests.write_text("".join(f"prompt {i}\n" for i in range(1, LINES + 1)))
    return requests, tmp_path / "out.jsonl"


def names(output):
    return [result["custom_id"] for result in read_lines(output)]


def all_names(count=LINES):
    return {f"line-{i}" for i in range(1, count + 1)}


def manifest(output):
    return json.loads(manifest_path(output).read_text())


# --- a run ---------------------------------------------------------------------------------------------------------


def test_every_line_is_answered_once_and_the_manifest_says_so(paths):
    seen = []
    counts = batch.run(*paths, Echo(), progress=lambda c: seen.append((c.answered, c.left)))
    assert (counts.lines, counts.answered, counts.errors, counts.left, counts.output_tokens) == (
        LINES,
        LINES,
        0,
        0,
        100,
    )
    assert len(names(paths[1])) == LINES and set(names(paths[1])) == all_names()
    assert seen[-1] == (LINES, 0) and [left for _, left in seen] == sorted((left for _, left in seen), reverse=True)
    said = manifest(paths[1])
    assert (said["state"], said["model"], said["answered"], said["lines"]) == ("complete", "echo", LINES, LINES)
    (run,) = said["runs"]
    assert run["engine"] == "echo" and run["pid"] == os.getpid() and run["output_tokens"] == 100 and run["ended"]
    assert not errors_path(paths[1]).exists()


def test_a_line_has_the_form_of_the_openai_api(paths):
    batch.run(*paths, Echo())
    result = next(read_lines(paths[1]))
    assert list(result) == ["id", "custom_id", "response", "error"]
    assert result["error"] is None and list(result["response"]) == ["status_code", "request_id", "body"]
    assert result["response"]["status_code"] == 200


def test_answers_as_a_table_in_the_order_of_the_input(paths):
    batch.run(*paths, Echo())
    table = batch.answers(paths[1])
    assert table["text"].tolist() == [f"prompt {i}" for i in range(1, LINES + 1)]
    assert table.loc[3].to_dict() == {
        "custom_id": "line-3", "text": "prompt 3", "finish_reason": "stop", "prompt_tokens": 1, "output_tokens": 2,
    }  # fmt: skip


def test_a_whole_batch_is_not_begun_again(paths):
    batch.run(*paths, Echo())
    text = paths[1].read_bytes()

    def no_engine():
        raise AssertionError("an engine was started for nothing")

    counts = batch.run(*paths, no_engine)
    assert (counts.before, counts.answered, counts.left) == (LINES, 0, 0)
    assert paths[1].read_bytes() == text


def test_errors_stay_apart_and_are_asked_again(paths):
    requests, output = paths
    good = '"fine"\n'
    wrong = json.dumps({"custom_id": "q", "url": "/v1/chat/completions", "body": {"top_q": 1}})
    requests = requests.with_suffix(".jsonl")
    requests.write_text(good + '"bad"\n' + "{\n" + wrong + "\n" + good)
    for _ in range(2):
        counts = batch.run(requests, output, Echo())
        assert (counts.lines, counts.before + counts.answered, counts.errors) == (5, 2, 3)
        assert names(output) == ["line-5", "line-1"] or names(output) == ["line-1", "line-5"]
        errors = {error["error"]["line"]: error for error in read_lines(errors_path(output))}
        assert {line: error["error"]["code"] for line, error in errors.items()} == {
            2: "http_400", 3: "invalid_json", 4: "unknown_field",
        }  # fmt: skip
        assert errors[2]["custom_id"] == "line-2" and errors[2]["response"] == {"status_code": 400}
        assert errors[3]["custom_id"] is None and errors[4]["custom_id"] == "q"
    assert manifest(output)["state"] == "complete" and manifest(output)["errors"] == 3


def test_an_error_that_passes_leaves_the_errors(paths, monkeypatch):
    requests, output = paths
    requests.write_text("bad\nfine\n")
    assert batch.run(requests, output, Echo()).errors == 1
    monkeypatch.setattr(Echo, "_answer", lambda self, r: Answer(r.line, r.custom_id, {}))
    counts = batch.run(requests, output, Echo())
    assert (counts.before, counts.answered, counts.errors) == (1, 1, 0)
    assert sorted(names(output)) == ["line-1", "line-2"] and not errors_path(output).exists()


# --- continued -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 400)), max_size=6), st.integers(1, 20))
def test_any_number_of_ends_loses_and_doubles_nothing(tmp_path_factory, ends, room):
    """Each run dies after some answers, and the end of its output is cut anywhere, as kill -9 may leave it."""
    folder = tmp_path_factory.mktemp("batch")
    requests, output = folder / "in.txt", folder / "out.jsonl"
    requests.write_text("".join(f"prompt {i}\n" for i in range(1, LINES + 1)))
    asked = 0
    for dies_after, cut in ends:
        engine = Echo(room, dies_after)
        try:
            batch.run(requests, output, engine)
        except StoppedError as error:
            assert "of 50 lines are answered; the same command goes on" in str(error)
        with open(output, "r+b") as file:
            file.truncate(max(0, file.seek(0, os.SEEK_END) - cut))
        asked += engine.asked
    whole = (
        output.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1 if output.exists() and output.stat().st_size else 0
    )
    last = Echo(room)
    counts = batch.run(requests, output, last)
    assert sorted(names(output)) == sorted(all_names())
    assert last.asked == counts.answered == LINES - counts.before, "only what was not answered is asked"
    assert abs(counts.before - whole) <= 1


@pytest.mark.parametrize("tail", [b'{"id": "batch_re', b"\0" * 500, b"\0" * 500 + b"\n", b'{"id": "other"}\n{'])
def test_a_half_written_end_is_cut_off(paths, tail):
    with pytest.raises(StoppedError):
        batch.run(*paths, Echo(dies_after=20))
    before = names(paths[1])
    with open(paths[1], "ab") as file:
        file.write(tail)
    counts = batch.run(*paths, Echo())
    assert counts.before == len(before) and names(paths[1])[: len(before)] == before
    assert sorted(names(paths[1])) == sorted(all_names())


def test_strange_lines_in_the_middle_are_left_alone_and_named(paths):
    batch.run(*paths, Echo())
    lines = paths[1].read_bytes().splitlines(keepends=True)
    for damage, words in ((b"note to myself\n", "Line 3 of .* is none of ours"), (lines[0], "has an answer .* twice")):
        text = b"".join([*lines[:2], damage, *lines[2:]])
        paths[1].write_bytes(text)
        with pytest.raises(OutputError, match=words):
            batch.run(*paths, Echo())
        assert paths[1].read_bytes() == text


def test_told_to_stop(paths):
    stop = threading.Event()
    with pytest.raises(StoppedError, match=r"Stopped as it was told to\. \d+ of 50 lines are answered"):
        batch.run(*paths, Echo(), stop=stop, progress=lambda counts: counts.answered > 20 and stop.set())
    assert manifest(paths[1])["state"] == "stopped" and "told to" in manifest(paths[1])["runs"][0]["ended_by"]
    assert 20 < len(names(paths[1])) < LINES
    batch.run(*paths, Echo())
    assert len(manifest(paths[1])["runs"]) == 2 and sorted(names(paths[1])) == sorted(all_names())


def test_an_engine_of_the_callers_is_not_left_with_old_requests(paths):
    """Interrupted in a notebook, and run again with the same engine."""
    engine = Echo(room=10)

    def interrupt(counts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(*paths, engine, progress=interrupt)
    assert not engine.waiting
    batch.run(*paths, engine)
    assert sorted(names(paths[1])) == sorted(all_names())


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "one more\n", r"9 bytes were added at its end\. Restore it, or name another output"),
        (lambda text: text[:-5], r"it had \d+ bytes and has \d+"),
        (lambda text: text.replace("prompt 7", "Prompt 7"), "its text differs"),
    ],
)
def test_an_input_that_changed_is_refused_with_the_reason(paths, change, words):
    requests, output = paths
    with pytest.raises(StoppedError):
        batch.run(requests, output, Echo(dies_after=20))
    before, text = output.read_bytes(), requests.read_text()
    requests.write_text(change(text))
    with pytest.raises(BatchError, match=words):
        batch.run(requests, output, Echo())
    assert output.read_bytes() == before
    requests.write_text(text)
    batch.run(requests, output, Echo())


def test_an_input_that_changes_meanwhile_is_noticed(paths):
    requests, output = paths
    text = requests.read_text()
    with pytest.raises(BatchError, match="was changed while it was being answered"):
        batch.run(requests, output, Echo(), progress=lambda counts: requests.write_text(text.replace("5", "6")))
    assert manifest(output)["state"] == "stopped"


def test_another_model_or_other_defaults_are_refused(paths):
    with pytest.raises(StoppedError):
        batch.run(*paths, Echo(dies_after=20))
    other = Echo()
    other.model = "other"
    with pytest.raises(BatchError, match="was begun with echo, and this is other. Ask the same model"):
        batch.run(*paths, other)
    with pytest.raises(BatchError, match="was begun with defaults"):
        batch.run(*paths, Echo(), defaults=Defaults(body={"max_tokens": 5}))


def test_a_file_that_is_none_of_ours_is_refused(paths):
    paths[1].write_text("precious\n")
    with pytest.raises(BatchError, match="is there and has no manifest. Move it away"):
        batch.run(*paths, Echo())
    assert paths[1].read_text() == "precious\n"
    manifest_path(paths[1]).write_text("{")
    with pytest.raises(OutputError, match=r"manifest\.json is damaged"):
        batch.run(*paths, Echo())


def test_an_output_that_cannot_be_written(paths):
    with pytest.raises(OutputError, match="cannot be written"):
        batch.run(paths[0], paths[0] / "out.jsonl", Echo())
    with pytest.raises(InputError):
        batch.run(paths[0].with_suffix(".jsonl"), paths[1], Echo())
    assert not paths[1].exists()


HOLD = """
import sys, time
from helpers.batch_output import Results
with Results(sys.argv[1]) as results:
    results.recover(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_write_one_file(paths):
    other = subprocess.Popen([sys.executable, "-c", HOLD, paths[1]], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=r"Another run is writing .*out\.jsonl.*Wait for it, or name another"):
            batch.run(*paths, Echo())
    finally:
        other.kill()
        other.wait()
    batch.run(*paths, Echo())


FORK = """
import os, time
from helpers.batch_vllm import follow_us
follow_us()
if child := os.fork():
    print(child, flush=True)
time.sleep(60)
"""


def test_a_forked_engine_ends_with_its_parent():
    """vLLM forks its engine on GPUs and spawns it on CPUs; the second is seen in tests/server."""
    parent = subprocess.Popen([sys.executable, "-c", FORK], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


# --- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk to fill")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_loses_nothing(paths, small_disk):
    requests, output = paths[0], small_disk / "out.jsonl"
    requests.write_text("".join(f"{'a long prompt ' * 10}{i}\n" for i in range(400)))
    for _ in range(2):
        with pytest.raises(
            StoppedError, match=r"No room for .*\(No space left on device\).* lines are answered; the same"
        ):
            batch.run(requests, output, Echo())
        lines = output.read_bytes().splitlines(keepends=True)
        assert all(json.loads(line) and line.endswith(b"\n") for line in lines) and 20 < len(lines) < 400
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    counts = batch.run(requests, output, Echo())
    assert counts.before == len(lines) and counts.left == 0
    assert len(names(output)) == 400 and set(names(output)) == all_names(400)


def test_a_disk_that_is_full_from_the_beginning(paths, small_disk):
    with suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoppedError, match="No room for .* 0 of 50 lines are answered"):
        batch.run(paths[0], small_disk / "out.jsonl", Echo())
    (small_disk / "filler").unlink()
    batch.run(paths[0], small_disk / "out.jsonl", Echo())
    assert set(names(small_disk / "out.jsonl")) == all_names()


# --- a million lines ----------------------------------------------------------------------------------------------


PEAK = """
import resource, sys
from pathlib import Path
from test_batch import Echo
from helpers import batch
folder, count = Path(sys.argv[1]), int(sys.argv[2])
with open(folder / f"{count}.txt", "w") as file:
    file.writelines(f"prompt {i}\\n" for i in range(count))
assert batch.run(folder / f"{count}.txt", folder / f"{count}.jsonl", Echo(room=512)).answered == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_of(tmp_path, count):
    """Bytes that a process needed at most to answer so many lines."""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-c", PEAK, tmp_path, str(count)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_memory_stays_flat(tmp_path):
    """Beyond a small run's: the bytes of a line (its name's hash, its number, done or not), so 60 MB for a million."""
    small, large = peak_of(tmp_path, 2_000), peak_of(tmp_path, 200_000)
    assert (large - small) / 198_000 < 60, (small, large)


# --- shards --------------------------------------------------------------------------------------------------------


def test_shards_are_merged_once_all_are_complete(paths):
    requests, output = paths
    with pytest.raises(BatchError, match="has no parts. Run its shards first"):
        batch_merge.missing(output)
    for index in (2, 0):
        batch.run(requests, output, Echo(), shard=Shard(index, 3))
    with pytest.raises(StoppedError):
        batch.run(requests, output, Echo(dies_after=3, room=1), shard=Shard(1, 3))
    assert not output.exists()
    assert batch_merge.missing(output) == ["out.1-of-3.jsonl is stopped"]
    batch.run(requests, output, Echo(), shard=Shard(1, 3))
    assert batch_merge.missing(output) == []
    for _ in range(2):  # a second time changes nothing
        counts = batch_merge.merge(output)
        assert (counts.lines, counts.answered, counts.errors) == (LINES, LINES, 0)
        assert len(names(output)) == LINES and set(names(output)) == all_names()
    assert manifest(output)["state"] == "complete" and len(manifest(output)["runs"]) == 4
    assert batch.run(requests, output, Echo()).before == LINES, "what was merged is a batch as any other"


def test_errors_of_shards_are_merged_and_asked_again(paths):
    requests, output = paths
    requests.write_text("fine\nbad\nfine\nbad\nfine\n")
    for index in range(2):
        batch.run(requests, output, Echo(), shard=Shard(index, 2))
    counts = batch_merge.merge(output)
    assert (counts.answered, counts.errors) == (3, 2)
    assert {error["error"]["line"] for error in read_lines(errors_path(output))} == {2, 4}
    again = batch.run(requests, output, Echo())
    assert (again.before, again.errors) == (3, 2)


def test_a_part_that_was_never_begun_is_named(paths):
    requests, output = paths
    batch.run(requests, output, Echo(), shard=Shard(0, 2))
    with pytest.raises(BatchError, match=r"out.1-of-2.jsonl is not begun. Run its shard first"):
        batch_merge.merge(output)


def test_parts_that_do_not_belong_together(paths):
    requests, output = paths
    batch.run(requests, output, Echo(), shard=Shard(0, 2))
    other = Echo()
    other.model = "other"
    batch.run(requests, output, other, shard=Shard(1, 2))
    with pytest.raises(BatchError, match="echo and other have answered the parts"):
        batch_merge.merge(output)
    batch.run(requests, output, Echo(), shard=Shard(0, 3))
    with pytest.raises(BatchError, match="has parts of 2 and of 3. Move one division away"):
        batch_merge.missing(output)
    with pytest.raises(BatchError, match="was begun with shard"):
        Path(output.with_name("out.2-of-3.jsonl")).write_text("")
        manifest_path(output.with_name("out.2-of-3.jsonl")).write_text(
            manifest_path(output.with_name("out.0-of-3.jsonl")).read_text()
        )
        batch.run(requests, output, Echo(), shard=Shard(2, 3))


def test_a_result_that_cannot_be_utf8_is_written_all_the_same(tmp_path):
    with Results(tmp_path / "out.jsonl") as results:
        results.recover(1)
        results.add([Answer(1, "ä", {"text": "half \ud83d of one"})])
    (result,) = read_lines(tmp_path / "out.jsonl")
    assert result["custom_id"] == "ä" and result["response"]["body"]["text"] == "half \ud83d of one"
