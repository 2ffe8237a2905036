"""The test cluster, up for the whole run, and one server for the tests that need any."""

import subprocess

import pytest
from portal import shared_folder
from testbed import NODES, STATE, TESTBED, Cluster, until

from helpers import class_folder


@pytest.fixture(scope="session")
def testbed():
    """Brings the cluster up; a machine that cannot have one fails here, in plain words. Left as it was found."""
    was_up = STATE.exists()
    size = (STATE / "nodes").read_text().strip() if was_up else str(NODES)
    assert size == str(NODES), f"a cluster of {size} nodes is up, the tests need {NODES}: make cluster-down first"
    done = subprocess.run([str(TESTBED), "up", str(NODES)], text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, f"no test cluster: {done.stdout}{done.stderr}"
    yield
    if not was_up:
        subprocess.run([str(TESTBED), "down"], check=True, timeout=120, capture_output=True)
        assert not STATE.exists()


@pytest.fixture(autouse=True)
def nothing_runs_on(cluster):
    """Jobs of a test end with it, also when it failed: left alone they would slow down all that follow."""
    before = len(cluster.jobs)
    yield
    cluster.end([job for job in cluster.jobs[before:] if not job.shared])


@pytest.fixture(scope="session")
def cluster(testbed, tmp_path_factory):
    """The cluster, from a folder of its own; every job submitted through it is cancelled at the end."""
    ours = Cluster(tmp_path_factory.mktemp("submitted"))
    yield ours
    ours.end(ours.jobs)
    if not ours.run("squeue", "--noheader").stdout:  # nobody else uses the cluster
        until(ours.strangers, 15, lambda: not ours.strangers())


@pytest.fixture(scope="session")
def reference(cluster, tmp_path_factory):
    """A server on one GPU, shared by the tests that need any server, and its greedy text. A drain ends it at last.

    It serves a class as well, in the folder `job.of_class`.
    """
    of_class = tmp_path_factory.mktemp("class")
    class_folder.prepare(of_class, everybody=True)
    job = cluster.submit("llama-3.1-8b", "--time=60", "--signal=B:USR1@60", SERVE_CLASS=str(of_class))
    job.shared, job.of_class = True, of_class
    job.text = job.answer()
    return job


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """A class's folder, from which the Open OnDemand app's sessions run."""
    return shared_folder(tmp_path_factory.mktemp("shared") / "class")
