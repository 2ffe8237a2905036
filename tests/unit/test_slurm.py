"""Deployments on Slurm: where a job stands by what it wrote, what is submitted, and what the command says."""

import dataclasses
import json
import os
import shlex
import stat
from pathlib import Path

import pytest
from test_queue import commands

from helpers import jobs, queue, slurm, slurm_command, slurm_top
from helpers.connections import Connection
from helpers.environment import OK, PROBLEM, Finding
from helpers.jobs import Job, assess, phase_of
from helpers.queue import SEPARATOR, Record, SlurmError, UnknownJobError

JOB = Job("12", "llama-3.1-8b", "12")
RECORD = Record(
    "12", "12", os.getuid(), "RUNNING", "None", "gpu", "2026-11-21T14:57:28", "2026-11-21T14:57:28", "2026-11-21T18:57:28",
    "3:59:04", "node1", "llama-3.1-8b", str(slurm.shelf.FOLDER / "llama-3.1-8b.sbatch"),
)  # fmt: skip

# What vLLM 0.32 printed on the test cluster, and on H200 while it loaded 70 B.
ENGINE = "(EngineCore pid=13191) INFO 11-21 14:57:49 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x', enforce_eager=True"
EAGER = "(EngineCore pid=1) WARNING 11-21 14:58:01 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs, and JIT kernel warmup."
LOAD = "(Worker pid=13256) INFO 11-21 14:57:57 [cpu_model_runner.py:68] Starting to load model /models/small..."
SHARDS = "\rLoading safetensors checkpoint shards:   0% Completed | 0/5 [00:00<?, ?it/s]\n\rLoading safetensors checkpoint shards:  40% Completed | 2/5 [00:06<00:09,  3.1s/it]"
LOADED = "(Worker pid=13256) INFO 11-21 14:57:57 [default_loader.py:501] Loading weights took 0.06 seconds"
CACHE = "(EngineCore pid=13191) INFO 11-21 14:57:57 [kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens, Maximum concurrency for 2,048 tokens per request: 128.00x"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WORKSHOP_SITE", raising=False)
    monkeypatch.setattr(queue, "_states", {})
    monkeypatch.setattr(jobs, "slurm_log", lambda job: None)
    return tmp_path / "home"


def record(**changes) -> Record:
    return dataclasses.replace(RECORD, **changes)


def wrote(job: Job = JOB, **files: str) -> Path:
    """A job's folder with these files: launcher -> launcher.log, rank_0 -> rank-0.log, outcome -> outcome."""
    job.folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (job.folder / (name if name == "outcome" else f"{name.replace('_', '-')}.log")).write_text(text)
    return job.folder


def slurm_has(tmp_path, monkeypatch, *found: Record, **more: str) -> None:
    lines = "\n".join(SEPARATOR.join(map(str, dataclasses.astuple(entry))) for entry in found)
    (tmp_path / "lines").write_text(lines + "\n" if lines else "")
    commands(tmp_path, monkeypatch, squeue=f"cat {tmp_path}/lines", sinfo="echo gpu*", sacct="exit 1", **more)


# --- where a job stands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "phase", "percent"),
    [
        ([], jobs.STARTING, None),
        ([ENGINE], jobs.STARTING, None),
        ([ENGINE, EAGER], jobs.STARTING, None),
        ([ENGINE, LOAD], jobs.LOADING, None),
        ([ENGINE, LOAD, SHARDS], jobs.LOADING, 40),
        ([ENGINE, LOAD, SHARDS, LOADED], jobs.WARMING_UP, None),
        ([ENGINE, LOAD, SHARDS, LOADED, CACHE, EAGER], jobs.WARMING_UP, None),
        ([CACHE, ENGINE], jobs.STARTING, None),
    ],
)
def test_the_log_tells_the_phase(home, lines, phase, percent):
    wrote(rank_0="\n".join(lines))
    assert phase_of(jobs.tail(JOB.folder / "rank-0.log")) == (phase, percent)


def test_only_the_end_of_a_long_log_is_read(home):
    path = wrote(rank_0="") / "rank-0.log"
    with open(path, "w") as log:
        log.write(f"{ENGINE}\n{LOAD}\n")
        log.truncate(5 * 2**30)  # sparse
        log.seek(0, os.SEEK_END)
        log.write(f"\n\x1b[0;36m{CACHE}\x1b[0;0m\n")
    assert phase_of(jobs.tail(path)) == (jobs.WARMING_UP, None)
    assert "\x1b" not in jobs.tail(path)


def test_a_job_is_followed_from_the_queue_to_its_end(home):
    assert assess(JOB, record(state="PENDING", reason="Priority", nodes="", start="N/A")).detail.startswith(
        "jobs of higher"
    )
    assert assess(JOB, RECORD).phase == jobs.STARTING, "no folder yet"
    wrote(launcher="14:57:28 starting llama-3.1-8b on node1: TP1", rank_0=f"{ENGINE}\n{LOAD}\n{SHARDS}")
    connection = Connection("http://10.77.0.11:10440/v1", "tiny", "key", str(JOB.folder), node="node1", job_id="12")
    connection.write()
    loading = assess(JOB, RECORD)
    assert (loading.phase, loading.percent, loading.base_url) == (jobs.LOADING, 40, None)
    assert str(loading) == "job 12 (llama-3.1-8b) is loading weights 40%"
    connection.state = "ready"
    connection.write()
    ready = assess(JOB, RECORD)
    assert (ready.phase, ready.base_url, ready.nodes, ready.time_left) == (
        jobs.READY,
        connection.base_url,
        "node1",
        "3:59:04",
    )
    assert "key" not in str(ready) and "key" not in repr(ready)
    connection.remove()
    wrote(
        launcher="14:57:28 starting x\n14:58:02 ready: x\n15:00:00 draining: requests in flight may take 100 s more\n"
    )
    assert assess(JOB, RECORD).phase == jobs.DRAINING and "100 s more" in str(assess(JOB, RECORD))
    wrote(outcome="finished: stopped before the time limit, after the requests in flight\n")
    assert assess(JOB, record(state="COMPLETED")).phase == jobs.FINISHED
    assert assess(JOB, None).phase == jobs.FINISHED, "Slurm has forgotten it"


def test_the_lines_of_a_run_before_a_requeue_do_not_count(home):
    wrote(launcher="10:00:00 starting x\n10:01:00 draining: bye\n11:00:00 starting x\n", rank_0=ENGINE)
    assert assess(JOB, RECORD).phase == jobs.STARTING


@pytest.mark.parametrize(
    ("state", "outcome", "phase", "told"),
    [
        (
            "CANCELLED",
            "cancelled: Slurm ended the job, by scancel or at its time limit",
            jobs.CANCELLED,
            "was cancelled",
        ),
        ("CANCELLED", None, jobs.CANCELLED, "was cancelled"),
        (
            "TIMEOUT",
            "cancelled: Slurm ended the job, by scancel or at its time limit",
            jobs.FAILED,
            "reached its time limit",
        ),
        ("TIMEOUT", None, jobs.FAILED, "reached its time limit"),
        (
            "FAILED",
            "failed: the port is taken. Name another.",
            jobs.FAILED,
            "has failed: the port is taken. Name another.",
        ),
        ("RUNNING", "failed: the port is taken. Name another.", jobs.FAILED, "the port is taken"),
        ("OUT_OF_MEMORY", None, jobs.FAILED, "more main memory than it asked for"),
        ("NODE_FAIL", None, jobs.FAILED, "a node failed"),
        ("COMPLETED", None, jobs.FINISHED, "has finished"),
        (None, "failed: no memory. Use more.", jobs.FAILED, "no memory. Use more."),
        (None, "cancelled: by hand", jobs.CANCELLED, "was cancelled: by hand"),
    ],
)
def test_how_it_ended(home, state, outcome, phase, told):
    wrote(**({"outcome": outcome} if outcome else {"launcher": "14:57:28 starting x"}))
    status = assess(JOB, record(state=state) if state else None)
    assert status.phase == phase and told in str(status) and status.is_over


def test_a_job_that_left_nothing_at_all_says_so(home):
    assert "it left no log" in str(assess(JOB, None))


# --- which job -----------------------------------------------------------------------------------------------------


def test_unknown_jobs_and_those_of_others_are_named(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, record(uid=os.getuid() + 1))
    with pytest.raises(UnknownJobError, match="Job 12 is not yours: `squeue --me`"):
        slurm.status(12)
    slurm_has(tmp_path, monkeypatch)
    with pytest.raises(UnknownJobError, match="Slurm knows no job 13, and it left no folder"):
        slurm.status("13")
    for nonsense in ("abc", "12;true", "--help", ""):
        with pytest.raises(UnknownJobError, match="no job's number"):
            slurm.status(nonsense)


def test_a_job_that_slurm_forgot_is_told_by_its_folder(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch)
    wrote(outcome="failed: no memory. Use more.")
    assert str(slurm.status("12")) == "job 12 has failed: no memory. Use more."
    assert slurm.status().job.id == "12", "and it is the newest that is known"


def test_without_a_number_it_is_the_newest_of_the_workshops_jobs(tmp_path, monkeypatch):
    foreign = record(id="20", raw_id="20", name="bash", command="/bin/bash", submitted="2026-11-21T16:00:00")
    refused = record(id="21", raw_id="21", state="FAILED", nodes="", submitted="2026-11-21T17:00:00")
    ended = record(id="14", raw_id="14", state="CANCELLED", nodes="", submitted="2026-11-21T15:30:00", start="N/A")
    waits = record(id="13", raw_id="13", state="PENDING", nodes="", submitted="2026-11-21T15:00:00", start="N/A")
    older = record(id="11", raw_id="11", state="COMPLETED", nodes="", submitted="2026-11-21T14:00:00", start="N/A")
    slurm_has(tmp_path, monkeypatch, foreign, refused, ended, waits, older)
    assert [entry.id for entry in jobs.mine(ended=True)] == ["14", "13", "11"]
    assert slurm.status().job.id == "13", "what is under way comes before what ended"


def test_a_folder_of_an_older_job_of_this_number_does_not_count(tmp_path, monkeypatch):
    folder = wrote()
    os.utime(folder, (0, 0))
    slurm_has(tmp_path, monkeypatch, record(command="/bin/bash"))
    assert jobs.mine() == []


# --- submitting ----------------------------------------------------------------------------------------------------


def test_the_command_is_complete_and_can_be_pasted(home, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    submission = slurm.prepare(
        "any-model", small=True, site="testbed", partition="debug", time="1:00:00",
        variables={"TP": 1, "FLAGS": "--seed 1 --max-num-seqs 4"}, extra=["--mem=8G"],
    )  # fmt: skip
    line = submission.shell
    assert line.startswith(f"mkdir -p -m 700 {home}/logs && env -u ") and " SLURM_JOB_ID " in line.replace("-u ", " ")
    words = shlex.split(line)
    for word in (
        "SMALL=1",
        "TP=1",
        "FLAGS=--seed 1 --max-num-seqs 4",
        "WORKSHOP_SITE=testbed",
        f"WORKSHOP_HOME={home}",
    ):
        assert word in words
    options = words[words.index("sbatch") :]
    assert options[-1] == str(slurm.shelf.FOLDER / "any-model.sbatch") and f"--output={home}/logs/%x-%j.log" in options
    assert options.index("--partition=gpu") < options.index("--partition=debug") < options.index("--mem=8G"), (
        "the later wins"
    )


def test_what_is_submitted_reaches_sbatch(home, tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, sbatch=f'echo "$@" >{tmp_path}/arguments; env >{tmp_path}/environment; echo 12')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    job = slurm.submit("any-model", check=False, small=True, variables={"TP": 1})
    assert (job.id, job.name, job.folder) == ("12", "any-model", home / "jobs" / "12")
    environment = (tmp_path / "environment").read_text().splitlines()
    assert {"SMALL=1", "TP=1", f"WORKSHOP_ROOT={slurm.shelf.ROOT}", "WORKSHOP_SITE=generic"} <= set(environment)
    assert not any(line.startswith(("SLURM_JOB", "VLLM_")) for line in environment)
    assert (tmp_path / "arguments").read_text().startswith("--parsable --export=ALL ")
    assert stat.S_IMODE((home / "logs").stat().st_mode) == 0o700


def test_a_deployment_that_would_fail_is_not_submitted(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, sbatch=f'[ "$1" = --version ] || touch {tmp_path}/submitted')
    findings = [Finding("weights", OK, "whole"), Finding("layout", PROBLEM, "TP3 does not divide 8 heads", "set TP=4")]
    monkeypatch.setattr(slurm.checks, "preflight", lambda *_, **__: findings)
    with pytest.raises(
        slurm.PreflightError, match="any-model would fail. layout: TP3 does not divide 8 heads -> set TP=4"
    ):
        slurm.submit("any-model")
    assert slurm_command.main(["submit", "any-model"]) == 1
    assert not (tmp_path / "submitted").exists()


@pytest.mark.parametrize("name", ["MODLE", "max_model_len", "FLAG", "A-B", ""])
def test_a_mistyped_variable_is_named(name):
    with pytest.raises(SlurmError, match="is no variable of this deployment"):
        slurm.prepare("any-model", variables={name: 1})


def test_variables_for_other_programs_pass():
    slurm.prepare("any-model", variables={"NCCL_DEBUG": "INFO", "HF_HOME": "/x", "SITE_INTERFACE": "ib0"})


# --- waiting and cancelling ----------------------------------------------------------------------------------------


def test_wait_follows_a_job_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "PAUSE", 0.01)
    slurm_has(tmp_path, monkeypatch, RECORD)
    steps = iter([{"rank_0": LOAD}, {"rank_0": SHARDS}, {}, {"outcome": "failed: no memory. Use more."}])
    told = []

    def on_status(status):
        told.append(status.phase)

    original = jobs.assess
    monkeypatch.setattr(slurm, "assess", lambda *known: (wrote(**next(steps)), original(*known))[1])
    last = slurm.wait("12", timeout=10, on_status=on_status)
    assert told == [jobs.LOADING, jobs.LOADING, jobs.FAILED], "each once: without a percentage, with one, the end"
    assert last.detail == "no memory. Use more."


def test_status_can_wait(tmp_path, monkeypatch, capsys):
    slurm_has(tmp_path, monkeypatch, record(state="FAILED"))
    wrote(outcome="failed: no memory. Use more.")
    assert slurm_command.main(["status", "12", "--wait"]) == 1
    assert "has failed: no memory" in capsys.readouterr().out


def test_wait_ends_in_time(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, RECORD)
    assert slurm.wait("12", timeout=0.1).phase == jobs.STARTING


def test_cancel_removes_what_a_killed_job_left(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, record(state="CANCELLED"))
    left = Connection("http://10.0.0.1:1/v1", "m", "k", "", node="node1", job_id="12")
    left.write()
    assert slurm.cancel("12").phase == jobs.CANCELLED and not left.path.exists()


def test_a_job_that_does_not_end_is_named(tmp_path, monkeypatch):
    slurm_has(tmp_path, monkeypatch, record(state="COMPLETING"), scancel="true")
    with pytest.raises(SlurmError, match="has not ended after 0.1 s: Slurm says COMPLETING on node1"):
        slurm.cancel("12", timeout=0.1)


# --- top -----------------------------------------------------------------------------------------------------------


def test_the_cards_of_every_node_are_listed():
    """Two lines as nvidia-smi prints them on an H200, and one of a card that tells no power."""
    printed = (
        "gpu, node2, 0, NVIDIA H200, 131072, 143771, 97, 651.28\n"
        "gpu, node1, 1, NVIDIA H200, 0, 143771, 0, [N/A]\ngpu, node1, 0, NVIDIA H200, 512, 143771, 3, 80.10\nsrun: warning, x\n"
    )
    rows = slurm_top.parse(printed)
    assert [(row["node"], row["gpu"]) for row in rows] == [("node1", 0), ("node1", 1), ("node2", 0)]
    assert rows[2]["used_gib"] == 128 and rows[2]["utilisation_percent"] == 97 and rows[1]["power_w"] is None


def test_without_cards_processes_are_listed():
    printed = (
        "process, node1, 29237 20.5 626816 /venv/bin/python /venv/bin/vllm serve /a, b\n"
        "process, node1,  3 0.0 900 sleep 0.5\nprocess, node2, 29612 97.1 1697336 VLLM::Worker\n"
    )
    rows = slurm_top.parse(printed)
    assert [row["pid"] for row in rows] == [29237, 29612], "shells and sleeps are left out"
    assert rows[0]["command"].endswith("serve /a, b") and rows[1]["rss_gib"] == pytest.approx(1.62, abs=0.01)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_and_tells_as_json(tmp_path, monkeypatch, capsys):
    slurm_has(tmp_path, monkeypatch, RECORD)
    assert slurm_command.main(["deployments", "--json"]) == 0
    assert "any-model" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert slurm_command.main(["status", "--json", "12"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["phase"], told["nodes"]) == ("12", "starting", "node1")
    wrote(outcome="failed: no memory. Use more.")
    assert slurm_command.main(["status", "12"]) == 1
    assert "Job 12 (llama-3.1-8b) has failed: no memory. Use more." in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "abc"], ["submit", "no-such-deployment"], ["preflight", "any-model", "--site", "nowhere"],
        ["submit", "any-model", "--set", "MODLE=x"], ["status", "--", "--mem=1G"], ["logs", "12", "--rank", "3"], ["top", "13"],
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, arguments):
    slurm_has(tmp_path, monkeypatch, record(state="PENDING", nodes="", start="N/A"))
    assert slurm_command.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == ""
    assert slurm_command.main([arguments[0], "--json", *arguments[1:]]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": said.err.strip()}


def test_a_dry_run_needs_no_slurm_and_submits_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert slurm_command.main(["submit", "any-model", "--small", "--dry-run", "--", "--mem=8G", "--nodes=2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.split()[-3:-1] == ["--mem=8G", "--nodes=2"]


def test_logs_are_shown_from_their_end(home, tmp_path, monkeypatch, capsys):
    slurm_has(tmp_path, monkeypatch, RECORD)
    wrote(rank_0="\n".join(f"line {n}" for n in range(100)), rank_1="the other\n")
    assert slurm_command.main(["logs", "12", "--rank", "0", "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"
    assert slurm.logs("12", rank=1) == "the other\n"
    with pytest.raises(UnknownJobError, match="it has logs of rank 0, 1"):
        slurm.logs("12", rank=2)


def test_a_log_is_followed_until_the_job_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "PAUSE", 0.01)
    slurm_has(tmp_path, monkeypatch, RECORD)
    wrote(rank_0="one\n")
    read = []
    for text in slurm.follow("12", rank=0):
        read.append(text)
        if len(read) == 1:
            wrote(rank_0="one\ntwo\n", outcome="finished")
    assert "".join(read) == "one\ntwo\n"
