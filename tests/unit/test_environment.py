"""The environment check: each thing that stands in the way of a lesson is named with its mend."""

import sys

import pytest

from helpers import environment
from helpers.connections import Connection
from helpers.environment import NOTE, OK, PROBLEM


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "not" / "yet" / "there"))
    return tmp_path


def command(folder, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_machine_that_runs_the_tests_is_ready_for_a_lesson(capsys):
    assert environment.show(), "a finding is a problem: see above"
    printed = capsys.readouterr().out
    assert printed.count("✓") + printed.count("·") == len(environment.report()) == len(printed.splitlines())


def test_one_problem_is_enough_to_say_no(monkeypatch, capsys):
    monkeypatch.setattr(environment, "python", lambda: environment.Finding("Python", PROBLEM, "2.7", "mend"))
    assert not environment.show()
    assert "✗ Python     2.7 -> mend" in capsys.readouterr().out


def test_another_python_is_a_problem(monkeypatch):
    assert environment.python().state == OK
    for version in [(3, 10, 9), (3, 14, 0)]:
        monkeypatch.setattr(sys, "version_info", version)
        assert environment.python().state == PROBLEM and "make setup PYTHON" in environment.python().mend


def test_a_processor_without_avx2_is_a_problem(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Fine 5000\nflags\t: avx avx2\n")
    assert environment.processor(info).state == OK and "Fine 5000" in environment.processor(info).found
    info.write_text("model name\t: Old 100\nflags\t: avx\n")
    assert environment.processor(info).state == PROBLEM and "no AVX2" in environment.processor(info).found
    assert environment.processor(tmp_path / "none").state == PROBLEM


@pytest.mark.parametrize("look", [environment.memory, environment.disk])
def test_too_little_room_is_a_problem(look):
    assert look(needed_gib=0.001).state == OK
    assert look(needed_gib=10**9).state == PROBLEM and look(needed_gib=10**9).mend


def test_missing_vllm_is_a_problem(monkeypatch):
    assert environment.vllm().state == OK
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        environment.vllm()

    def missing(name):
        raise environment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.importlib.metadata, "version", missing)
    assert environment.vllm().state == PROBLEM and "make setup" in environment.vllm().mend


def test_gpus_and_slurm_are_read_from_their_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.gpus().state == NOTE and environment.slurm().state == NOTE
    command(tmp_path, "nvidia-smi", 'echo "NVIDIA H100, 81559 MiB"; echo "NVIDIA H100, 81559 MiB"')
    command(tmp_path, "sbatch", "exit 0")
    assert environment.gpus().found.count("H100") == 2
    assert environment.slurm().state == NOTE and "no sinfo here" in environment.slurm().found
    command(tmp_path, "sinfo", "printf 'debug\\ngpu*\\n'")
    assert (environment.slurm().state, environment.slurm().found) == (OK, "partitions gpu, debug")
    command(tmp_path, "sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert environment.slurm().state == NOTE and "cannot be reached" in environment.slurm().found
    command(tmp_path, "nvidia-smi", "exit 9")
    assert environment.gpus().state == PROBLEM and "driver" in environment.gpus().mend


def test_a_server_is_found_by_its_file_or_by_the_variable(monkeypatch):
    assert environment.server().state == NOTE
    Connection("http://127.0.0.1:9/v1", "tiny", "key-of-mine", "", node="elsewhere", state="ready").write()
    assert environment.server().found == "tiny at http://127.0.0.1:9/v1, ready"
    monkeypatch.setenv("VLLM_BASE_URL", "http://gpu7:8000/v1")
    assert environment.server().found == "http://gpu7:8000/v1 (VLLM_BASE_URL)"
