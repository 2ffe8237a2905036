"""Preflight against a real Slurm: its partitions, its nodes, and its own last word."""

import pytest

from helpers import partitions, preflight, queue
from helpers.deployments import find
from helpers.environment import NOTE, OK, PROBLEM
from helpers.sites import read_site


@pytest.fixture
def check(cluster, monkeypatch):
    """Preflight of a deployment on the test cluster: what Slurm has to do with, by state."""
    for name in ("SLURM_CONF", "WORKSHOP_SITE", "WORKSHOP_VENV"):
        monkeypatch.setenv(name, cluster.env[name])

    def run(name, options=None, **variables):
        found = preflight.preflight(find(name), read_site("testbed"), variables=variables, options=options)
        return {state: [f"{f.what}: {f.found}" for f in found if f.state == state] for state in (PROBLEM, NOTE, OK)}

    return run


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b-tp4-h100", "llama-3.1-405b-tp4-pp4-h100"])
def test_what_the_cluster_can_run_passes(check, name):
    found = check(name)
    assert not found[PROBLEM] and "partition: gpu: 4 of 4 nodes take jobs" in found[OK]


@pytest.mark.parametrize(
    "options, story",
    [
        (["--partition=gpuu"], "partition: this cluster has no 'gpuu'"),
        (["--gpus-per-node=5"], "GPUs: the job wants 5 a node, and nodes of gpu have 4"),
        (["--nodes=5"], "nodes: the job wants 5 and gpu has 4 such"),
        (["--partition=debug"], "time: 04:00:00 is more than debug allows, 00:10:00"),
        (["--mem=3T"], "host memory: the job wants 3T a node"),
    ],
)
def test_what_it_cannot_run_is_refused_and_slurm_agrees(check, cluster, options, story):
    assert story in " ".join(check("llama-3.1-8b", options)[PROBLEM])
    script = find("llama-3.1-8b").path
    job = cluster.run("sbatch", "--test-only", *options, script, check=False)
    if "--partition=debug" not in options:  # a job over its partition's limit is taken, and waits for ever
        assert job.returncode, f"Slurm takes what preflight refuses: {job.stderr}"


def test_what_only_slurm_knows_is_told_in_its_words(check):
    (said,) = check("llama-3.1-8b", ["--reservation=course"])[PROBLEM]
    assert said.startswith("Slurm: sbatch would refuse: ") and "reservation" in said.lower()


def test_a_drained_node_is_named_with_its_reason(check, cluster):
    cluster.run("scontrol", "update", "nodename=node4", "state=drain", "reason=fan broken")
    try:
        assert queue.nodes_out("gpu") == {"node4": "fan broken"}
        found = check("llama-3.1-8b")
        assert not found[PROBLEM] and any("node4 is drain" in said and "(fan broken)" in said for said in found[NOTE])
        (said,) = check("llama-3.1-405b-tp4-pp4-h100")[PROBLEM]
        assert said.startswith("nodes: the job wants 4 and 3 take jobs: node4 is drain")
    finally:
        cluster.run("scontrol", "update", "nodename=node4", "state=resume")


def test_a_closed_partition_is_refused(check, cluster):
    cluster.run("scontrol", "update", "partitionname=debug", "state=down")
    try:
        found = check("llama-3.1-8b", ["--partition=debug", "--time=5"])
        assert found[PROBLEM][0] == "partition: debug is closed to jobs"
    finally:
        cluster.run("scontrol", "update", "partitionname=debug", "state=up")


def test_slurm_s_own_lists_are_read_whole(check, cluster):
    found = partitions.parse_partitions(cluster.run("scontrol", "--oneliner", "show", "partition").stdout)
    assert set(found) == {"gpu", "debug"} and found["gpu"].is_default
    assert [node.gpus for node in partitions.with_nodes(found["gpu"]).nodes] == [4, 4, 4, 4]
