"""Batches as jobs: to the end, requeued and out of time in the middle, and as an array whose parts are merged."""

import json
import time

import pytest
from testbed import ROOT, until

from helpers import batch
from helpers.batch_output import errors_path, manifest_path, read_lines

MODEL = str(ROOT / "helpers/tiny/model")
LINES = 160  # of a batch that is stopped in the middle: with four seats it takes about 20 s


def write(cluster, name, count, tokens=40):
    """A file of the same question many times; its answers go beside it."""
    body = {"messages": [{"role": "user", "content": "What is the KV cache?"}], "temperature": 0, "max_tokens": tokens}
    body["min_tokens"] = tokens if tokens > 40 else 0
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    path = cluster.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"q{i}", **line}) + "\n" for i in range(count)))
    return path, cluster.folder / f"{name}.answers.jsonl"


def answered(output):
    return output.read_bytes().count(b"\n") if output.exists() else 0


def assert_whole(output, count):
    table = batch.answers(output)
    assert sorted(table["custom_id"]) == sorted(f"q{i}" for i in range(count))
    assert table["text"].str[:100].nunique() == 1 and len(table["text"].iloc[0]) > 40  # past its end it rambles


def runs(output):
    return json.loads(manifest_path(output).read_text())["runs"]


def test_a_batch(cluster):
    """The second time there is nothing to do, and no model is loaded."""
    requests, output = write(cluster, "whole", 5)
    requests.write_text(requests.read_text() + "{\n")
    job = cluster.submit("offline_batch", MODEL=MODEL, INPUT=str(requests))
    assert "failed: some lines have errors, which stand in" in job.ended(300), job
    assert_whole(output, 5)
    (error,) = read_lines(errors_path(output))
    assert (error["error"]["line"], error["error"]["code"]) == (6, "invalid_json")
    job.nothing_left()
    began = time.monotonic()
    again = cluster.submit("offline_batch", MODEL=MODEL, INPUT=str(requests))
    assert "some lines have errors" in again.ended(60) and "vLLM" not in again.log("rank-0"), again
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("variables", "options", "sentence"),
    [
        ({"INPUT": "/no/such.jsonl"}, [], "/no/such.jsonl is missing or empty"),
        ({"OUTPUT": "answers.csv"}, [], "OUTPUT is answers.csv; it must end in .jsonl."),
        ({"SHARDS": "2"}, ["--array=2"], "Task 2 is none of 2. Number the tasks from 0, or set SHARDS"),
    ],
)
def test_what_a_batch_refuses(cluster, variables, options, sentence):
    requests, _ = write(cluster, "refused", 1)
    job = cluster.submit("offline_batch", *options, **{"MODEL": MODEL, "INPUT": str(requests), **variables})
    if options:
        job.folder = job.folder.with_name(f"{job.id}_2")
    assert sentence in job.ended(), job
    job.nothing_left()


def test_another_input_is_refused_in_the_jobs_outcome(cluster):
    requests, output = write(cluster, "changed", 2)
    output.write_text("precious\n")
    job = cluster.submit("offline_batch", MODEL=MODEL, INPUT=str(requests))
    assert job.ended(60).startswith(f"failed: {output} is there and has no manifest. Move it away"), job
    assert output.read_text() == "precious\n"


@pytest.mark.timeout(1200)
def test_requeued_it_goes_on(cluster):
    """As after the failure of a node: Slurm ends the job wherever it is, and starts it again."""
    requests, output = write(cluster, "requeued", LINES, tokens=100)
    job = cluster.submit("offline_batch", MODEL=MODEL, INPUT=str(requests), FLAGS="--max-num-seqs=4")
    until(lambda: f"the first answers: {job}", 400, lambda: answered(output) > 10 or job.over())
    assert not job.over(), job
    cluster.run("scontrol", "requeue", job.id)
    until(lambda: f"the job to wait again: {job}", 60, lambda: job.state() == "PENDING")
    before = answered(output)
    cluster.run("scontrol", "update", f"jobid={job.id}", "StartTime=now", check=False)
    assert job.ended(600) == "finished", job
    assert_whole(output, LINES)
    first, last = runs(output)
    assert 10 < before < LINES and abs(last["answered"] - (LINES - before)) <= 1, (first, last)
    job.nothing_left()


@pytest.mark.timeout(1200)
def test_out_of_time_it_comes_again_by_itself(cluster):
    requests, output = write(cluster, "short", LINES, tokens=100)
    job = cluster.submit("offline_batch", MODEL=MODEL, INPUT=str(requests), FLAGS="--max-num-seqs=4")
    until(lambda: f"the first answers: {job}", 400, lambda: answered(output) > 10 or job.over())
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)  # what Slurm does when the time limit nears
    until(lambda: f"the job to wait again: {job}", 60, lambda: job.state() == "PENDING")
    assert "requeued: the time limit came" in job.log()
    assert runs(output)[0]["ended_by"].startswith("Stopped as it was told to")
    job.cancel()
    job.ended()
    job.nothing_left()
    assert 10 < answered(output) < LINES


@pytest.mark.timeout(1200)
def test_an_array_answers_parts_and_merges_them(cluster):
    requests, output = write(cluster, "parts", 21)
    job = cluster.submit("offline_batch", "--array=0-1", MODEL=MODEL, INPUT=str(requests))
    tasks = [job.folder.with_name(f"{job.id}_{task}") / "outcome" for task in range(2)]
    until(lambda: f"the end of {job}", 600, lambda: all(task.exists() for task in tasks))
    assert [task.read_text().strip() for task in tasks] == ["finished"] * 2
    assert_whole(output, 21)
    assert len(runs(output)) == 2 and json.loads(manifest_path(output).read_text())["state"] == "complete"
    assert answered(output.with_suffix(".0-of-2.jsonl")) == 11
