"""What stands against a deployment before it is submitted: each finding, with its mend."""

import re
import sys

import pytest

from helpers import partitions, preflight, queue, vllm_flags
from helpers.deployments import SMALL_MODEL, find
from helpers.environment import NOTE, OK, PROBLEM
from helpers.partitions import assess, mebibytes, parse_nodes, parse_partitions, seconds
from helpers.preflight import local_folder
from helpers.sites import Site

PARTITIONS = """
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL Default=YES DefaultTime=01:00:00 MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=UP TRES=cpu=16,node=4
PartitionName=short AllowAccounts=lab,course Default=NO MaxNodes=2 MaxTime=00:30:00 State=UP
PartitionName=old AllowAccounts=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN
"""
NODES = """\
node1|mixed|gpu:h100:4(S:0-1)|96|1500000|h100,ib|none
node2|idle~|gpu:h100:4|96|1500000|h100,ib|none
node3|drained|gpu:h100:4|96|1500000|h100,ib|fan broken
node4|down*|gpu:h100:4|96|1500000|h100,ib|Not responding
"""


@pytest.fixture
def site(tmp_path):
    """A profile with a venv that has a vLLM to start, and an empty folder of models."""
    for name in ("vllm", "python"):
        path = tmp_path / "venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(sys.executable)
    (tmp_path / "models").mkdir()
    return Site("mine", tmp_path, {"SITE_VENV": str(tmp_path / "venv"), "SITE_MODELS": str(tmp_path / "models")})


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """The cluster's part has tests of its own, here with texts and in tests/slurm with a cluster."""
    monkeypatch.setattr(preflight, "cluster", lambda *_: [])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def findings(name, site, options=None, **variables):
    found = preflight.preflight(find(name), site, variables=variables, options=options)
    assert all(f.mend or f.state != PROBLEM for f in found), "a problem without its mend"
    return found


def problems(*arguments, **variables):
    return [f"{f.what}: {f.found} -> {f.mend}" for f in findings(*arguments, **variables) if f.state == PROBLEM]


def whole_model(folder):
    folder.mkdir(parents=True)
    for path in SMALL_MODEL.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


# --- the model and its memory ----------------------------------------------------------------------------------------


def test_a_deployment_that_is_well_has_no_problem(site):
    found = {f.what: f for f in findings("llama-3.1-70b-tp4-h100", site)}
    assert found["memory"].state == OK and "7.70 requests" in found["memory"].found
    assert {f.state for f in found.values()} == {OK, NOTE}


def test_what_cannot_fit_is_refused_with_a_way_to_find_what_does(site):
    (said,) = problems("qwen2.5-32b", site, GPU="A100-40")
    assert re.fullmatch(
        r"memory: on 1 A100-40: Weights .* GiB more than .* -> `python -m helpers.memory qwen2.5-32b .*", said
    )
    (said,) = problems("qwen2.5-32b", site, MAX_MODEL_LEN="131072")
    assert "lower max_model_len to " in said


def test_flags_that_change_memory_count(site):
    assert problems("llama-3.1-405b-fp8-tp4-h200", site, MAX_MODEL_LEN="300000")
    few = {"MAX_MODEL_LEN": "300000", "FLAGS": "--kv-cache-dtype fp8"}
    assert not [said for said in problems("llama-3.1-405b-fp8-tp4-h200", site, **few) if said.startswith("memory")]


def test_tp_that_does_not_divide_is_refused(site):
    said = " ".join(problems("llama-3.1-70b-tp4-h100", site, TP="3"))
    assert "TP3 x PP1 x DP1 takes 3 GPUs and the job has 4 -> change TP and PP, or --nodes" in said
    assert "does not divide the 64 attention heads of llama-3.1-70b; sizes that do: 1, 2, 4" in said


def test_ranks_that_nodes_cannot_share_are_refused(site):
    said = problems("any-model", site, ["--nodes=3", "--gpus-per-node=4"], MODEL="Qwen/Qwen2.5-7B-Instruct", GPU="H100",
                    TP="4", PP="1")  # fmt: skip
    assert said == ["layout: TP4 x PP1 x DP1 = 4 ranks cannot be shared evenly by 3 nodes -> change TP, PP or --nodes"]


def test_no_model_and_no_number_are_refused(site):
    assert problems("any-model", site) == [
        "model: none is named -> set MODEL, for example MODEL=Qwen/Qwen2.5-7B-Instruct"
    ]
    assert problems("llama-3.1-8b", site, TP="two") == [
        "settings: TP is 'two'; it must be a whole number above 0. -> correct it"
    ]


@pytest.mark.parametrize(
    "variables, story",
    [
        ({"MODEL": "acme/unheard-of", "GPU": "H100"}, "No model 'acme/unheard-of'"),
        ({"MODEL": "Qwen/Qwen2.5-7B-Instruct"}, "not checked, for GPU is not set"),
        ({"MODEL": "Qwen/Qwen2.5-7B-Instruct", "GPU": "MI300X"}, "Unknown GPU 'MI300X'"),
    ],
)
def test_memory_that_cannot_be_computed_is_a_note(site, variables, story):
    (found,) = [f for f in findings("any-model", site, **variables) if f.what == "memory"]
    assert found.state == NOTE and story in found.found


def test_the_small_model_is_held_to_its_heads_not_to_gpus(site):
    assert not problems("llama-3.1-405b-tp4-pp4-h100", site, SMALL="1")
    assert "does not divide" in problems("llama-3.1-8b", site, SMALL="1", TP="3")[0]


def test_a_site_of_small_models_needs_no_word_for_it(site):
    testbed = Site("testbed", site.path, {**site.variables, "SMALL": "1"})
    found = {f.what: f for f in findings("llama-3.1-405b-tp4-pp4-h100", testbed)}
    assert found["weights"].found.startswith("1 shard") and found["memory"].state == OK
    assert "405B" in {f.what: f for f in findings("llama-3.1-405b-tp4-pp4-h100", testbed, SMALL="0")}["weights"].found


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_found_where_the_job_looks(site, tmp_path):
    staged = whole_model(tmp_path / "models" / "tiny")
    assert local_folder("acme/tiny", site) == staged
    assert local_folder("/models/mine", site).name == "mine"
    cached = whole_model(tmp_path / "hf" / "hub" / "models--acme--other" / "snapshots" / "abc")
    assert local_folder("acme/other", site) == cached
    (cached / "model.safetensors").unlink()
    assert local_folder("acme/other", site) is None, "vLLM completes what it has in its own cache"


def test_missing_and_incomplete_weights_are_refused(site, tmp_path):
    staged = whole_model(tmp_path / "models" / "tiny")
    assert not problems("any-model", site, MODEL="acme/tiny", SMALL="1")
    (staged / "model.safetensors").unlink()
    (staged / "model.safetensors").write_bytes(b"half")
    (said,) = problems("any-model", site, MODEL="acme/tiny", SMALL="1")
    assert "weights: model.safetensors is truncated" in said
    assert said.endswith("`MODEL=acme/tiny sbatch slurm/stage_weights.sbatch` brings them")
    assert "weights: There is no folder /nowhere" in problems("any-model", site, MODEL="/nowhere", GPU="H100")[0]


def test_a_model_that_will_be_downloaded_is_a_note(site, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (note,) = [f for f in findings("llama-3.1-70b-tp4-h100", site) if f.what == "weights"]
    assert note.state == NOTE
    assert "vLLM will download 141 GB to" in note.found and "HF_TOKEN" in note.found
    assert "stage_weights.sbatch" in note.mend


# --- flags and the runtime -------------------------------------------------------------------------------------------


def test_an_unknown_flag_is_refused_by_the_vllm_that_will_serve(site, monkeypatch):
    asked = []

    def complaint(flags, python):
        asked.append((flags, python))
        return "vLLM has no flag --max-modle-len: did you mean --max-model-len?"

    monkeypatch.setattr(vllm_flags, "complaint", complaint)
    (said,) = problems("llama-3.1-8b", site, FLAGS="--max-modle-len 8192")
    assert said.startswith("flags: vLLM has no flag --max-modle-len: did you mean --max-model-len?")
    flags = (*find("llama-3.1-8b").flags, "--max-modle-len", "8192")
    assert asked == [(flags, f"{site.venv}/bin/python")]


def test_flags_that_cannot_be_checked_are_a_note_not_a_pass(site, tmp_path):
    (tmp_path / "venv" / "bin" / "python").unlink()
    (note,) = [f for f in findings("llama-3.1-8b", site, FLAGS="--max-num-seqs 8") if f.what == "flags"]
    assert note.state == NOTE and "not checked" in note.found and "has no vLLM" in note.found


@pytest.mark.parametrize(
    "changes, story",
    [
        ({"SITE_VENV": "/nowhere"}, "runtime: no vllm in /nowhere -> run make setup, or correct SITE_VENV"),
        ({"SITE_RUNTIME": "apptainer", "SITE_IMAGE": "/nowhere.sif"}, "runtime: there is no image /nowhere.sif"),
        ({"SITE_RUNTIME": "apptainer"}, "there is no image (SITE_IMAGE is empty)"),
        ({"SITE_RUNTIME": "docker"}, "SITE_RUNTIME is 'docker' -> use venv, module, apptainer"),
    ],
)
def test_a_runtime_that_is_not_there_is_refused(site, changes, story):
    (said,) = problems("llama-3.1-8b", Site("mine", site.path, {**site.variables, **changes}))
    assert story in said


def test_ray_must_be_there_to_be_the_launcher(site):
    (said,) = problems("llama-3.1-8b", site, LAUNCHER="ray")
    assert said.startswith("runtime: no ray in ") and "pip install ray" in said
    assert "LAUNCHER is 'mpi'" in problems("llama-3.1-8b", site, LAUNCHER="mpi")[0]


# --- the cluster, from Slurm's texts -----------------------------------------------------------------------------------


def cluster_of(partition="gpu", nodes=NODES):
    found = parse_partitions(PARTITIONS)[partition]
    return partitions.Partition(**{**found.__dict__, "nodes": parse_nodes(nodes)})


def stands_against(name, *options, partition="gpu", nodes=NODES):
    deployment = find(name).configured({}, options)
    found = assess(deployment, cluster_of(partition, nodes), partitions.asked_of_sbatch(options))
    return [f"{f.what}: {f.found} -> {f.mend}" for f in found if f.state == PROBLEM], [
        f for f in found if f.state != PROBLEM
    ]


def test_slurm_s_texts_are_read():
    gpu, short, old = parse_partitions(PARTITIONS).values()
    assert (gpu.is_up, gpu.is_default, gpu.max_seconds, gpu.max_nodes) == (True, True, 86400, None)
    assert (short.accounts, short.max_nodes, short.max_seconds) == ({"lab", "course"}, 2, 1800)
    assert not old.is_up and old.max_seconds is None
    one, two, three, four = parse_nodes(NODES)
    assert (one.gpus, one.kinds, one.cpus, one.memory) == (4, ("h100",), 96, 1500000)
    assert [node.is_usable for node in (one, two, three, four)] == [True, True, False, False]
    assert three.reason == "fan broken"


@pytest.mark.parametrize("gres, gpus", [("gpu:4", 4), ("gpu:a100:2,gpu:h100:2(S:0)", 4), ("(null)", 0), ("gpu", 1),
                                        ("shard:8,gpu:2", 2)])  # fmt: skip
def test_gpus_of_a_node_are_counted(gres, gpus):
    assert parse_nodes(f"n|idle|{gres}|1|1|(null)|none\n")[0].gpus == gpus


@pytest.mark.parametrize(
    "text, value",
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-12", 216000), ("2-12:30", 217800), ("1-00:00:01", 86401), ("UNLIMITED", None)],
)  # fmt: skip
def test_slurm_s_times(text, value):
    assert seconds(text) == value


def test_slurm_s_sizes():
    assert [mebibytes(size) for size in ("400G", "64000", "1T", "512M", "2048K", "0", "")] == [
        409600, 64000, 1048576, 512, 2, 0, 0
    ]  # fmt: skip


def test_nodes_that_are_out_are_named_with_their_reasons():
    said, rest = stands_against("llama-3.1-405b-fp8-tp4-pp2-h100")
    assert said == [] and [(f.what, f.state) for f in rest] == [("nodes", NOTE), ("partition", OK)]
    assert "node3 is drained (fan broken)" in rest[0].found and "2 of 4 nodes take jobs" in rest[1].found
    (said,), _ = stands_against("llama-3.1-405b-tp4-pp4-h100")
    assert said.startswith("nodes: the job wants 4 and 2 take jobs: node3 is drained (fan broken); node4 is down")


@pytest.mark.parametrize(
    "options, partition, story",
    [
        (["--gpus-per-node=8"], "gpu", "GPUs: the job wants 8 a node, and nodes of gpu have 4"),
        (["--cpus-per-task=128"], "gpu", "CPUs: the job wants 128 a node, and nodes of gpu have 96 -> ask for less: --cpus-per-task=96"),
        (["--mem=2T"], "gpu", "host memory: the job wants 2T a node, and nodes of gpu have 1464G -> ask for less: --mem=1464G"),
        (["--nodes=5"], "gpu", "nodes: the job wants 5 and gpu has 4 such"),
        (["--time=2-0"], "gpu", "time: 2-0 is more than gpu allows, 1-00:00:00 -> ask for less: --time=1-00:00:00"),
        (["--time=10"], "old", "partition: old is closed to jobs"),
        (["--time=10", "--account=lab", "--nodes=3"], "short", "nodes: short gives a job 2 nodes at most"),
        (["--time=10", "--account=mine"], "short", "account: short does not take mine -> name one with SITE_ACCOUNT or --account: course, lab"),
        (["--constraint=h200"], "gpu", "nodes: gpu has no node with the feature h200"),
    ],
)  # fmt: skip
def test_what_the_partition_does_not_give_is_refused(options, partition, story):
    said, _ = stands_against("llama-3.1-8b", *options, partition=partition)
    assert story in " ".join(said)


def test_an_account_that_is_not_named_may_be_the_default_one():
    said, rest = stands_against("llama-3.1-8b", "--time=10", partition="short")
    assert said == [] and rest[0].what == "account" and rest[0].state == NOTE


def test_gpus_of_another_kind_than_the_plan_s_are_a_note():
    _, rest = stands_against("llama-3.1-70b-tp2-h200")
    assert (
        "gpu has H100, and the plan is for H200" in rest[-2].found and rest[-2].mend == "check it for these: GPU=H100"
    )


def test_a_partition_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(queue, "ask", lambda command, **_: PARTITIONS if command[0] == "scontrol" else NODES)
    (found,) = partitions.check(find("llama-3.1-8b"), ["--partition=gpuu"])
    assert (found.state, found.found) == (PROBLEM, "this cluster has no 'gpuu'")
    assert found.mend.endswith(": gpu, short, old")
    assert partitions.check(find("llama-3.1-8b"))[-1].found.startswith("gpu: "), "the default partition"
    assert partitions.check(find("llama-3.1-8b"), ["-p", "short,gpu"])[-1].state == OK, "one of several is enough"


def test_without_slurm_the_cluster_is_a_note(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    (note,) = preflight.cluster(find("llama-3.1-8b"), [], {})
    assert note.state == NOTE and "no scontrol here" in note.found
