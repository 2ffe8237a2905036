"""The other files that ship, and the ways in which people submit: from any folder, by a path with blanks, with Ray."""

import json
import shutil
import subprocess

import pytest
from testbed import ROOT

from helpers import deployments
from helpers.bench_store import read_all


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "slurm").glob("*.sbatch"))])
def test_slurm_takes_every_file(cluster, name):
    """As it ships, with its own nodes, GPUs, cores, memory and time."""
    done = cluster.run("sbatch", "--test-only", ROOT / "slurm" / f"{name}.sbatch")
    wanted = deployments.read(ROOT / "slurm" / f"{name}.sbatch").nodes
    assert f"on {wanted} nodes" in done.stderr or "to start at" in done.stderr


def test_benchmark(cluster):
    job = cluster.submit("benchmark", CONCURRENCIES="1 4", ROUNDS="2", INPUT_LEN="64", OUTPUT_LEN="16")
    assert job.ended(240) == "finished", job
    rows = [json.loads(path.read_text()) for path in sorted(cluster.folder.glob(f"benchmark-{job.id}/*.json"))]
    assert [row["max_concurrency"] for row in rows] == [1, 4]
    assert [row["completed"] for row in rows] == [2, 8]
    assert all(row["output_throughput"] > 0 for row in rows)
    job.nothing_left()


def test_a_matrix_that_cannot_be_measured(cluster):
    job = cluster.submit("benchmark", MATRIX="/no/such.toml")
    assert "failed: /no/such.toml is missing or empty on node" in job.ended(), job
    (cluster.folder / "wrong.toml").write_text('[[rows]]\nname = "cut"\nmodel = "tiny"\ntp = 7\n')
    job = cluster.submit("benchmark", MATRIX=str(cluster.folder / "wrong.toml"))
    assert job.ended(60).startswith("failed: Row cut: TP7 takes 7 cores and this machine has"), job
    job.nothing_left()


def test_a_matrix_of_which_a_server_fails_keeps_the_others(cluster):
    row = '[[rows]]\nname = "{}"\nmodel = "tiny"\nflags = ["--enforce-eager", "--max-model-len", "{}"]\n'
    matrix, results = cluster.folder / "half.toml", cluster.folder / "half"
    matrix.write_text(
        "concurrencies = [2]\nlengths = [[16, 8]]\n" + row.format("dies", 99999) + row.format("lives", 512)
    )
    job = cluster.submit("benchmark", MATRIX=str(matrix), RESULTS=str(results))
    said = job.ended(240)
    assert (
        said.startswith("failed: some servers were not measured: The server of row dies ended") and str(results) in said
    ), job
    assert [cell["row"] for cell in read_all(results)[0].cells] == ["lives"]
    job.nothing_left()


def test_submitted_from_a_path_with_blanks(cluster, tmp_path):
    """Slurm runs a copy of the script from its spool; the shell libraries are found all the same."""
    copy = tmp_path / "a workshop" / "slurm"
    shutil.copytree(ROOT / "slurm", copy, ignore=shutil.ignore_patterns("testbed"))
    job = cluster.submit(copy / "any-model", MODEL="/models/typo")
    assert (
        job.ended() == "failed: No model in /models/typo: it holds no config.json. Name the folder that does, in MODEL."
    )
    assert job.facts()["Command"].endswith("/a") or "a workshop" in job.facts()["Command"]


def test_submitted_through_standard_input(cluster):
    """Slurm then knows no path: WORKSHOP_ROOT tells where the workshop is."""
    script = (ROOT / "slurm/any-model.sbatch").read_text()
    environment = {**cluster.env, "MODEL": "/models/typo", "WORKSHOP_ROOT": str(ROOT)}
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, env=environment, cwd=cluster.folder, capture_output=True, text=True, check=True
    )  # fmt: skip
    job = cluster.known(done.stdout.strip())
    assert "No model in /models/typo" in job.ended()


def test_ray_forms_its_cluster(cluster):
    """vLLM's CPU backend does not run on Ray, so this goes as far as a CPU can: both nodes join, vLLM says no."""
    job = cluster.submit("any-model", "--nodes=2", LAUNCHER="ray")
    assert job.ended(180).startswith("failed: rank ")
    assert "does not support ray" in job.log("rank-0")
    assert job.doctor()["cause"] == "ray-unsupported"
    job.nothing_left()
