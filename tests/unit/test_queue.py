"""Slurm's commands: what the real ones (22.05) printed on the test cluster, and what is said when they do not answer."""

import os
import time
from pathlib import Path

import pytest

from helpers import queue
from helpers.queue import FORMAT, SEPARATOR, SlurmError, UnknownJobError
from helpers.reasons import REASONS, in_words, why_it_waits

#: squeue --noheader --states=all --format=FORMAT, its separators shown as |
SQUEUE = """\
41|41|0|PENDING|PartitionTimeLimit|debug|2026-11-21T14:57:12|N/A|N/A|1:00:00||wrap|(null)
42|42|0|PENDING|Resources|gpu|2026-11-21T14:57:12|2026-11-21T15:52:02|2026-11-21T16:52:02|1:00:00||wrap|(null)
33|33|0|RUNNING|None|gpu|2026-11-21T14:52:02|2026-11-21T14:52:02|2026-11-21T15:52:02|54:48|node[1-2]|sr.sbatch|/tmp/tb/sr.sbatch
34|34|0|FAILED|NonZeroExitCode|gpu|2026-11-21T14:54:35|2026-11-21T14:54:36|2026-11-21T14:56:53|3:57:43|node[1-2]|any-model|/home/learner/slurm/any-model.sbatch
29|29|0|TIMEOUT|TimeLimit|gpu|2026-11-21T14:51:51|2026-11-21T14:51:51|2026-11-21T14:53:02|INVALID|node1|doctor-limit|(null)
44|44|0|COMPLETING|None|gpu|2026-11-21T14:57:28|2026-11-21T14:57:28|2026-11-21T14:58:24|3:59:04|node1|any-model|/home/learner/slurm/any-model.sbatch
"""
SCONTROL = """\
JobId=34 JobName=any-model
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=FAILED Reason=NonZeroExitCode Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=1:0
   RunTime=00:02:17 TimeLimit=04:00:00 TimeMin=N/A
   Command=/home/learner/my slurm=/any-model.sbatch
   WorkDir=/home/learner/s
   StdErr=/home/learner/a b=c/any-model-34.log
   StdIn=/dev/null
   StdOut=/home/learner/a b=c/any-model-34.log
   TresPerNode=gres:gpu:1
"""
#: sacct --noheader --parsable2 --allocations --format=ACCOUNTED, in the form its manual gives
SACCT = "12|12|1000|CANCELLED by 1000|None|gpu|2026-11-21T14:46:36|None|2026-11-21T14:46:40|None assigned|a|b\n"


def commands(folder: Path, monkeypatch, **scripts: str) -> None:
    """Commands of these names, in front of PATH, each a line of shell."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def records(text: str = SQUEUE) -> dict[str, queue.Record]:
    return {record.id: record for record in queue.parse_records(text.replace("|", SEPARATOR))}


def test_every_line_of_squeue_becomes_a_record():
    assert list(records()) == ["41", "42", "33", "34", "29", "44"]
    running = records()["33"]
    assert (running.state, running.nodes, running.time_left) == ("RUNNING", "node[1-2]", "54:48")
    assert running.command == "/tmp/tb/sr.sbatch" and running.uid == 0
    assert [entry.waits for entry in records().values()] == [True, True, False, False, False, False]
    assert [entry.runs for entry in records().values()] == [False, False, True, False, False, True], "also COMPLETING"
    assert [entry.is_over for entry in records().values()] == [False, False, False, True, True, False]
    assert FORMAT.count(SEPARATOR) + 1 == len(queue.fields(queue.Record))


def test_lines_that_are_no_record_are_passed_over():
    """Sites print greetings in front of what was asked for."""
    assert records(f"Welcome to our cluster!\n\n{SQUEUE}").keys() == records().keys()


def test_details_keep_blanks_and_equals_signs_in_paths():
    details = queue.parse_details(SCONTROL)
    assert details["StdOut"] == "/home/learner/a b=c/any-model-34.log" and details["WorkDir"] == "/home/learner/s"
    assert (details["ExitCode"], details["Reason"], details["TresPerNode"]) == ("1:0", "NonZeroExitCode", "gres:gpu:1")


def test_accounting_loses_the_states_tail():
    (record,) = queue.parse_accounting(SACCT)
    assert (record.id, record.uid, record.state, record.name) == ("12", 1000, "CANCELLED", "a|b")
    assert queue.parse_accounting("Slurm accounting storage is disabled\n") == []


def test_the_environment_of_the_notebooks_own_job_is_left_behind():
    given = {
        "SLURM_JOB_ID": "7", "SLURM_EXPORT_ENV": "NONE", "SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "x",
        "SLURM_CONF": "/etc/c", "VLLM_API_KEY": "k", "VLLM_BASE_URL": "u", "PMI_RANK": "0", "FORCE_COLOR": "1",
        "HF_TOKEN": "t", "WORKSHOP_HOME": "/h", "PATH": "/bin", "MY_SLURM_X": "kept",
    }  # fmt: skip
    assert queue.clean_environment(given).keys() == {"SLURM_CONF", "HF_TOKEN", "WORKSHOP_HOME", "PATH", "MY_SLURM_X"}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "cannot be reached from here"),
        ("squeue: error: resolve_ctls_from_dns_srv: Unknown host squeue: fatal: Could not establish a configuration source", "name no cluster"),
        ("something new", "`squeue` failed: something new"),
    ],
)  # fmt: skip
def test_a_slurm_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch, said, sentence):
    commands(tmp_path, monkeypatch, squeue=f"echo '{said}' >&2; exit 1")
    with pytest.raises(SlurmError, match=sentence) as caught:
        queue.ask(["squeue"])
    assert "\n" not in str(caught.value) and not isinstance(caught.value, UnknownJobError)


def test_no_slurm_and_a_slow_slurm_are_named(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, squeue="exec sleep 30")
    started = time.monotonic()
    with pytest.raises(SlurmError, match="did not answer `squeue` within 0.2 s.*Try again"):
        queue.record("12", patience=0.2)
    assert time.monotonic() - started < 5
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert not queue.is_here()
    with pytest.raises(SlurmError, match="no squeue here.*make cluster"):
        queue.record("12")


def test_an_unknown_job_is_none_and_not_an_error(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue.record("999") is None and queue.job_state("999") is None


def test_a_jobs_state_is_asked_once_in_a_while(tmp_path, monkeypatch):
    line = SQUEUE.splitlines()[2].replace("|", SEPARATOR)
    commands(tmp_path, monkeypatch, squeue=f"echo x >>{tmp_path}/asked; echo '{line}'")
    monkeypatch.setattr(queue, "_states", {})
    assert {queue.job_state("33") for _ in range(20)} == {"RUNNING"}
    assert (tmp_path / "asked").read_text() == "x\n"
    assert queue.job_state("33", age=0) == "RUNNING" and (tmp_path / "asked").read_text() == "x\nx\n"


def test_a_state_that_could_not_be_asked_is_no_state(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, squeue=f"echo x >>{tmp_path}/asked; echo Unable to contact >&2; exit 1")
    monkeypatch.setattr(queue, "_states", {})
    for _ in range(3):
        with pytest.raises(SlurmError):
            queue.job_state("33")
    assert (tmp_path / "asked").read_text() == "x\n", "a controller in trouble is left alone for a moment"


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "sinfo -o"),
        ("sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified", "sinfo -s"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("sbatch: error: Batch job submission failed: Requested reservation is invalid", "scontrol show reservation"),
        ("sbatch: error: Invalid generic resource (gres) specification", "no such GPUs"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "limit of your account or QOS"),
    ],
)  # fmt: skip
def test_what_sbatch_refuses_gets_its_mend(tmp_path, monkeypatch, said, mend):
    (tmp_path / "said").write_text(said)
    commands(tmp_path, monkeypatch, sbatch=f"cat {tmp_path}/said >&2; exit 1")
    with pytest.raises(SlurmError) as caught:
        queue.sbatch(["x.sbatch"], os.environ)
    text = str(caught.value)
    assert (
        text.startswith("Slurm refuses the job: ") and mend in text and "\n" not in text and "sbatch: error" not in text
    )


@pytest.mark.parametrize(("printed", "number"), [("12", "12"), ("12;cluster", "12"), ("Welcome!\\n12", "12")])
def test_the_number_of_a_job_is_read(tmp_path, monkeypatch, printed, number):
    commands(tmp_path, monkeypatch, sbatch=f"printf '{printed}\\n'")
    assert queue.sbatch(["x.sbatch"], os.environ) == number


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for nodes to become free"),
        ("ReqNodeNotAvail, UnavailableNodes:node1", "down, drained or reserved"),
        ("PartitionTimeLimit", "never start; cancel it and ask for less with --time"),
        ("QOSMaxGRESPerUser", "your QOS allows no more GPUs or other resources at once (QOSMaxGRESPerUser)"),
        ("QOSMaxCpuPerUserLimit", "your QOS allows no more cores at once"),
        ("AssocGrpNodeLimit", "your account allows no more nodes at once"),
        ("MaxJobsPerAccount", "your account allows no more jobs at once"),
        ("SomethingNew", "Slurm gives the reason SomethingNew"),
    ],
)
def test_a_reason_is_told_in_words(reason, words):
    assert words in in_words(reason)


def test_reasons_are_clauses():
    assert all(words[0].islower() or words.startswith("Slurm") for words in REASONS.values())
    assert not any(words.endswith(".") for words in REASONS.values())


def test_nodes_that_are_out_and_the_expected_start_are_told(tmp_path, monkeypatch):
    commands(tmp_path, monkeypatch, sinfo="echo 'node[3-4]|GPU 2 fell off the bus'")
    told = why_it_waits(records()["42"])
    assert told == (
        "it is next, and waits for nodes to become free; node[3-4] is out: GPU 2 fell off the bus; "
        "Slurm expects it to start by 2026-11-21 15:52:02"
    )
    assert "node" not in why_it_waits(records()["41"]), "a time limit has nothing to do with nodes"
