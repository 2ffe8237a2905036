"""Connection files: private, whole or absent, and honest about a server that is gone."""

import json
import os
import socket
import stat
import subprocess
import sys
import time

import pytest
from test_queue import SQUEUE, commands

from helpers import connections, queue
from helpers.connections import READY, Connection, read, read_all
from helpers.queue import SEPARATOR


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path))
    return tmp_path


def make(port: int = 8123, **fields) -> Connection:
    given = {"model": "tiny", "api_key": "secret", "log": "/tmp/x.log", "node": socket.gethostname()} | fields
    return Connection(f"http://127.0.0.1:{port}/v1", **given)


def test_home_is_in_the_users_folder_unless_told_otherwise(monkeypatch, tmp_path):
    assert connections.home() == tmp_path
    monkeypatch.delenv("WORKSHOP_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(connections.home()) == "/somewhere/.llm-serving-workshop"


def test_what_is_written_is_read_back(home):
    connection = make(job_id="4711", pid=1, state=READY)
    connection.write()
    assert read(connection.path) == connection
    assert json.loads(connection.path.read_text()).keys() >= {"base_url", "model", "api_key", "job_id", "node", "log"}
    connection.remove()
    connection.remove()
    assert read_all() == [] and list((home / "servers").iterdir()) == []


def test_only_the_owner_reads_it_whatever_the_umask(home):
    before = os.umask(0)
    try:
        make().write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(make().path.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "servers").stat().st_mode) == 0o700


def test_servers_on_one_node_or_in_one_job_do_not_share_a_file():
    paths = {make(**fields).path for fields in ({}, {"port": 8124}, {"job_id": "1"}, {"job_id": "2"}, {"node": "n2"})}
    assert len(paths) == 5


def test_the_newest_comes_first():
    for age, port in [(50, 1), (10, 2), (30, 3)]:
        connection = make(port)
        connection.write()
        os.utime(connection.path, (time.time() - age,) * 2)
    assert [connection.base_url[17:18] for connection in read_all()] == ["2", "3", "1"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1]", "null", "7", '"text"', "{}", '{"base_url": "http://x"}', "\x00"]
)
def test_a_file_that_is_not_ours_is_passed_over(home, text):
    make().write()
    (home / "servers" / "other.json").write_text(text)
    assert read_all() == [make()]


def test_unknown_fields_of_a_newer_version_are_passed_over(home):
    make().write()
    data = json.loads(make().path.read_text())
    make().path.write_text(json.dumps(data | {"colour": "blue"}))
    assert read_all() == [make()]


def test_a_process_that_ended_is_gone_also_as_a_zombie():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    connection = make(pid=process.pid)
    assert not connection.is_gone()
    process.kill()
    time.sleep(0.2)
    assert connection.is_gone(), "nobody has asked for its exit code yet"
    process.wait()
    assert connection.is_gone()


def test_what_cannot_be_known_is_not_called_gone():
    assert not make(pid=2**22 - 1, node="another-node").is_gone()
    assert not make(pid=None).is_gone()


@pytest.mark.parametrize(
    ("squeue", "sinfo", "gone"),
    [
        ("cat {lines}", "echo node1", False),
        ("cat {lines} | sed s/RUNNING/COMPLETING/", "echo node1", False),
        ("cat {lines} | sed s/RUNNING/CANCELLED/", "echo node1", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "echo node1", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "true", False),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "echo node1", False),
        ("cat {lines} | sed s/RUNNING/CANCELLED/", "exit 1", False),
    ],
    ids=["runs", "ends", "cancelled", "forgotten", "another cluster's", "squeue fails", "sinfo fails"],
)
def test_a_job_is_gone_only_when_slurm_says_so(tmp_path, monkeypatch, squeue, sinfo, gone):
    (tmp_path / "lines").write_text(SQUEUE.splitlines()[2].replace("|", SEPARATOR))
    commands(tmp_path, monkeypatch, squeue=squeue.format(lines=tmp_path / "lines"), sinfo=sinfo)
    monkeypatch.setattr(queue, "_states", {})
    assert make(job_id="33", node="node1", pid=None).is_gone() is gone


def test_without_slurm_a_job_is_never_called_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not make(job_id="33", node="node1").is_gone()


def test_a_class_server_comes_after_ones_own_and_is_not_ours_to_remove(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSHOP_CLASS", str(tmp_path / "class"))
    make().write()
    shared = tmp_path / "class/servers/anything.json"
    shared.parent.mkdir(parents=True)
    shared.write_text(make().path.read_text())
    mine, theirs = read_all()
    assert mine.is_ours and theirs.path == shared and theirs == mine
    theirs.remove()
    mine.remove()
    assert [each.path for each in read_all()] == [shared]
