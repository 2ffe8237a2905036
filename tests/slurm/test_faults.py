"""What goes wrong on clusters, made to happen: each time the job ends, says why, and leaves nothing behind."""

import subprocess
import sys
import time

import jupyter_client
import pytest
from testbed import ROOT, STATE, until

LOADING = "Starting to load model"


def test_rank_killed_while_loading(cluster):
    job = cluster.submit("any-model", "--nodes=2")
    until(lambda: f"loading: {job}", 120, lambda: LOADING in job.log("rank-0") or job.over())
    assert job.connection().state == "starting"
    job.kill_rank(1)
    assert "while starting" in job.ended()
    job.nothing_left()
    assert job.doctor()["cause"] == "killed"


def test_cancelled_while_pending(cluster):
    job = cluster.submit("any-model", "--hold")
    assert job.state() == "PENDING"
    assert job.doctor()["cause"] == "pending"
    job.cancel()
    job.ended()
    assert job.state() == "CANCELLED"
    assert not job.folder.exists()
    job.nothing_left()
    assert job.doctor()["cause"] == "cancelled"


def test_cancelled_while_loading(cluster):
    job = cluster.submit("any-model")
    until(lambda: f"loading: {job}", 120, lambda: LOADING in job.log("rank-0"))
    job.cancel()
    assert job.ended().startswith("cancelled")
    job.nothing_left()
    assert job.doctor()["cause"] == "cancelled"


def test_chosen_port_taken(cluster):
    taken = _listen("node1", 8123)
    try:
        job = cluster.submit("any-model", "--nodelist=node1", PORT="8123")
        assert "Port 8123 is taken on node1" in job.ended()
    finally:
        _stop(taken)
    job.nothing_left()
    assert job.doctor()["cause"] == "port-taken"


def test_derived_port_taken(cluster):
    """A stranger on the port that the job id leads to: the job gives vLLM the next."""
    job = cluster.submit("any-model", "--nodelist=node1", "--hold")
    port = 20000 + int(job.id) * 10 % 12000
    taken = _listen("node1", port)
    try:
        cluster.run("scontrol", "release", job.id)
        job.vllm_began()
    finally:
        _stop(taken)
    url = job.connection().base_url
    assert (
        f":{port}/" not in url
        and f"--port {url.split(':')[2].split('/')[0]} " in job.folder.joinpath("command").read_text()
    )
    assert f"port {port} or the next is taken" in job.log()
    job.cancel()
    assert job.ended().startswith("cancelled")
    job.nothing_left()


def _listen(node, port):
    code = f"import socket, time; s = socket.create_server(('', {port})); print('up', flush=True); time.sleep(600)"
    command = ["ip", "netns", "exec", f"workshop-{node}", sys.executable, "-c", code]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert listener.stdout.readline() == "up\n"
    return listener


def _stop(process):
    process.kill()
    process.wait()


#: variables of the job -> the doctor's cause
MISTAKES = {
    "no such folder": ({"MODEL": "/models/typo"}, "model-not-found"),
    "not the GPUs of the job": ({"TP": "3", "PP": "1", "SMALL": "0", "MODEL": "x"}, "too-few-gpus"),
    "too little memory": ({"FLAGS": "--num-gpu-blocks-override 4"}, "kv-cache-too-small"),
    "unknown flag": ({"FLAGS": "--enable-warp-speed"}, "unknown-flag"),
    "heads not divisible": ({"TP": "3"}, "heads-not-divisible"),
    "no such interface": ({"SITE_INTERFACE": "ib9"}, "wrong-interface"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(cluster, mistake):
    variables, cause = MISTAKES[mistake]
    job = cluster.submit("any-model", **variables)
    assert job.ended(120).startswith("failed: ")
    assert job.state() == "FAILED"
    job.nothing_left()
    assert job.doctor()["cause"] == cause


def test_no_shared_storage(cluster, tmp_path):
    """WORKSHOP_HOME cannot be made: said at once, in Slurm's own log."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    job = cluster.submit("any-model", f"--output={tmp_path}/out.log", WORKSHOP_HOME=str(blocked))
    job.ended()
    assert job.state() == "FAILED"
    assert "WORKSHOP_HOME" in (tmp_path / "out.log").read_text()


def test_disk_full(cluster, tmp_path):
    """The shared storage is full: no half-written connection file, and the job says so."""
    full = tmp_path / "full"
    full.mkdir()
    slurmd = (STATE / "run/node1.pid").read_text().strip()
    on_node1 = ["nsenter", f"--target={slurmd}", "--mount"]  # a node sees mounts of its own
    fill = f"mount -t tmpfs -o size=64k tmpfs {full} && ! head -c 1M /dev/zero >{full}/ballast 2>/dev/null"
    subprocess.run([*on_node1, "bash", "-c", fill], check=True)
    try:
        options = [f"--output={tmp_path}/out.log", "--nodelist=node1"]
        job = cluster.submit("any-model", *options, WORKSHOP_HOME=str(full))
        job.ended()
        assert job.state() == "FAILED"
        assert "Free some space" in (tmp_path / "out.log").read_text()
        left = subprocess.run([*on_node1, "find", f"{full}/servers", "-type", "f"], capture_output=True, text=True)
        assert left.stdout == ""
    finally:
        subprocess.run([*on_node1, "umount", "--lazy", full], check=True)


def test_node_drained(cluster):
    cluster.run("scontrol", "update", "nodename=node4", "state=drain", "reason=fan broken")
    try:
        job = cluster.submit("any-model", "--nodelist=node4")
        time.sleep(2)
        assert job.state() == "PENDING"
        said = job.doctor()
        assert said["cause"] == "pending"
        assert "node4" in said["sentence"] and "fan broken" in said["sentence"]
    finally:
        cluster.run("scontrol", "update", "nodename=node4", "state=resume")
        job.cancel()
    job.ended()
    job.nothing_left()


def test_notebook_kernel_killed(cluster):
    """A notebook submits and its kernel is killed: the server serves on, a new kernel finds it and can end it."""
    manager, kernel = jupyter_client.manager.start_new_kernel(kernel_name="python3", env=cluster.env, cwd=str(ROOT))
    said = []
    kernel.execute_interactive(
        "from helpers import slurm; print(slurm.submit('any-model').id)",
        output_hook=lambda message: said.append(message["content"].get("text", "")),
        timeout=60,
    )
    manager.shutdown_kernel(now=True)
    job = cluster.known("".join(said).split()[-1])
    job.ready()
    done = cluster.run(sys.executable, "-c", "from helpers.client import connect; connect()")
    assert "tiny-llama" in done.stdout
    cluster.run(sys.executable, "-m", "helpers.slurm", "cancel", job.id)
    assert job.ended().startswith("cancelled")
    job.nothing_left()
