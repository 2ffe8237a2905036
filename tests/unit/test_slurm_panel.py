"""The panel: what is shown of a job, that it says little and stops when it should, and what shows without a kernel."""

import dataclasses
import os
import threading
import time

import pytest

from helpers import jobs, queue, slurm
from helpers.environment import NOTE, OK, PROBLEM, Finding
from helpers.jobs import Job, Status
from helpers.slurm_panel import SlurmPanel, _findings

JOB = Job("12", "llama-3.1-8b", "12")


@pytest.fixture(autouse=True)
def cluster(tmp_path, monkeypatch):
    """A cluster without jobs; `follow` is the list of what a job goes through."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path))
    monkeypatch.setenv("WORKSHOP_SITE", "generic")
    monkeypatch.setattr(slurm, "need_slurm", lambda: None)
    monkeypatch.setattr(jobs, "mine", lambda **_: [])
    monkeypatch.setattr(slurm.checks, "preflight", lambda *_, **__: [Finding("weights", OK, "whole")])
    monkeypatch.setattr(slurm, "send", lambda submission: Job("12", submission.deployment.name, "12"))
    follow = []
    monkeypatch.setattr(slurm, "watch", lambda job: iter(follow))
    return follow


def settled(panel: SlurmPanel) -> SlurmPanel:
    panel._thread.join(10)
    assert not panel._thread.is_alive()
    return panel


def a_panel(**settings) -> SlurmPanel:
    return settled(SlurmPanel(**settings))


def steps(panel: SlurmPanel, *phases: Status) -> list[tuple[int, str]]:
    seen = []
    for status in phases:
        panel._show(status)
        seen.append((panel._bar.value, panel._bar.bar_style))
    return seen


def test_submit_checks_sends_and_follows(cluster):
    panel = a_panel()
    assert panel._cancel.disabled and panel._show_log.disabled and "Nothing submitted" in panel._text.value
    cluster += [
        Status(JOB, jobs.PENDING, "it is next, and waits for nodes <soon>"),
        Status(JOB, jobs.READY, base_url="http://10.0.0.1:1/v1", model="tiny"),
    ]
    panel._choice.value = "llama-3.1-8b"
    panel._submit.click()
    settled(panel)
    assert panel.job == JOB and "1 of 1 checks passed" in panel._details.value
    assert "<b>ready</b>" in panel._text.value and "tiny answers at http://10.0.0.1:1/v1" in panel._text.value
    assert (panel._bar.value, panel._bar.bar_style) == (100, "success") and not panel._cancel.disabled


def test_the_bar_only_grows_on_the_way_to_ready():
    on_the_way = [Status(JOB, phase) for phase in jobs.PHASES]
    on_the_way[2:3] = [Status(JOB, jobs.LOADING, percent=percent) for percent in (0, 40, 100)]
    panel = a_panel()
    filled = [value for value, _ in steps(panel, *on_the_way)]
    assert filled == sorted(filled) and filled[0] == 0 and filled[-1] == 100
    panel._show(Status(JOB, jobs.LOADING, percent=40))
    assert "<b>loading weights 40%</b>" in panel._text.value


def test_a_failure_is_told_with_its_reason():
    panel = a_panel()
    assert steps(panel, Status(JOB, jobs.FAILED, "the model <x> was not found."))[0] == (100, "danger")
    assert "has failed: the model &lt;x&gt; was not found." in panel._text.value and panel._cancel.disabled


def test_a_deployment_that_would_fail_is_not_sent(monkeypatch):
    findings = [Finding("layout", PROBLEM, "TP3 does not divide 8 heads", "set TP=4")]
    monkeypatch.setattr(slurm.checks, "preflight", lambda *_, **__: findings)
    monkeypatch.setattr(slurm, "send", lambda _: pytest.fail("sent all the same"))
    panel = a_panel()
    panel._submit.click()
    settled(panel)
    assert "would fail" in panel._text.value and "TP3 does not divide 8 heads → set TP=4" in panel._details.value
    assert not panel._submit.disabled and panel.job is None


def test_an_error_is_a_sentence_and_the_panel_can_be_used_again(monkeypatch):
    def refuse(_):
        raise queue.SlurmError("Slurm refuses the job: Requested <node> is not available.")

    monkeypatch.setattr(slurm, "send", refuse)
    panel = a_panel()
    panel._submit.click()
    settled(panel)
    assert "Slurm refuses the job: Requested &lt;node&gt;" in panel._text.value and not panel._submit.disabled


def test_a_job_under_way_is_taken_up_again(monkeypatch, cluster):
    record = queue.Record("12", "12", os.getuid(), "RUNNING", *["N/A"] * 6, "node1", "llama-3.1-8b", "x")
    monkeypatch.setattr(jobs, "mine", lambda **_: [record])
    cluster.append(Status(JOB, jobs.STARTING))
    assert a_panel().job == JOB


def test_it_is_quiet_while_nothing_changes(cluster, monkeypatch):
    panel, messages = a_panel(), []
    cluster += [Status(JOB, jobs.LOADING, percent=40)] * 500
    panel._text.observe(messages.append, names="value")
    panel._bar.observe(messages.append, names="value")
    panel._log.observe(messages.append, names="value")
    panel.job = JOB
    panel._do(panel._follow)
    settled(panel)
    assert len(messages) == 2, "the bar once, the text once"


def test_a_new_panel_ends_the_threads_of_the_one_before(monkeypatch):
    def endless(job):
        while True:
            time.sleep(0.01)
            yield Status(JOB, jobs.STARTING)

    panel = a_panel()
    monkeypatch.setattr(slurm, "watch", endless)
    panel.job = JOB
    panel._do(panel._follow)
    assert panel._thread.daemon, "nor does it keep a kernel alive"
    time.sleep(0.05)
    assert panel._thread.is_alive()
    a_panel()
    panel._thread.join(5)
    assert not panel._thread.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "slurm-panel"]


def test_cancel_ends_the_job_and_says_so(monkeypatch):
    monkeypatch.setattr(slurm, "cancel", lambda job: Status(job, jobs.CANCELLED))
    panel = a_panel()
    panel.job = JOB
    panel._show(Status(JOB, jobs.STARTING))
    panel._cancel.click()
    settled(panel)
    assert "was cancelled" in panel._text.value and panel._cancel.disabled


def test_the_log_is_shown_on_demand():
    JOB.folder.mkdir(parents=True)
    (JOB.folder / "rank-0.log").write_text("\n".join(f"line <{n}>" for n in range(100)))
    panel = a_panel()
    panel.job = JOB
    panel._show_log.value = True
    assert "line &lt;99&gt;" in panel._log.value and "line &lt;70&gt;" not in panel._log.value
    panel._show_log.value = False
    assert panel._log.value == ""


def test_it_shows_without_a_kernel_and_the_same_on_every_site(monkeypatch):
    bundle = a_panel()._repr_mimebundle_()
    assert "any-model" in bundle["text/html"] and "python -m helpers.slurm submit NAME" in bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle and bundle["text/plain"]
    monkeypatch.setenv("WORKSHOP_SITE", "testbed")
    assert a_panel()._repr_mimebundle_()["text/html"] == bundle["text/html"]


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("WORKSHOP_SITE", "generic")
    monkeypatch.setattr(slurm, "need_slurm", lambda: queue.run([str(tmp_path / "sbatch")]))
    assert "so no Slurm: log in to a cluster" in a_panel()._text.value


def test_findings_begin_with_what_is_in_the_way():
    findings = [
        Finding("weights", OK, "whole"),
        Finding("memory", NOTE, "tight"),
        Finding("layout", PROBLEM, "TP3", "TP=4"),
    ]
    text = _findings(findings)
    assert "1 of 3 checks passed" in text and text.index("layout") < text.index("memory") and "weights" not in text
    assert "<li" not in _findings([dataclasses.replace(findings[0])])
