"""stage_weights.sbatch on the test cluster, with huggingface_hub's own client against a hub on this machine."""

import pytest
from hub import TOKEN, Hub, split_model
from testbed import ROOT, until

from helpers import checkpoint

GATEWAY = "10.77.0.1"  # this machine, as the nodes see it
SHARDS = [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return split_model(ROOT / "helpers/tiny/model", tmp_path_factory.mktemp("hub") / "tiny", 3)


@pytest.fixture
def hub(repository):
    hub = Hub({"workshop/tiny": repository})
    yield hub
    hub.close()


@pytest.fixture
def stage(cluster, hub, tmp_path):
    """Submits stage_weights.sbatch as a person would; HF_HOME is empty, so that no token lies about."""

    def submit(model="workshop/tiny", *options, **variables):
        ours = {"MODEL": model, "HF_ENDPOINT": f"http://{GATEWAY}:{hub.port}", "HF_HOME": str(tmp_path / "hf"),
                "DEST": str(tmp_path / "models" / "tiny"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}  # fmt: skip
        return cluster.submit("stage_weights", *options, **(ours | variables))

    return submit


def test_a_model_arrives_without_duplicates_and_is_checked(stage, hub, tmp_path):
    job = stage()
    folder = tmp_path / "models" / "tiny"
    assert job.ended() == f"finished: complete: 3 shards, 0.014 GB in {folder}", job
    assert checkpoint.problems(folder) == []
    there = {path.name for path in folder.iterdir() if path.is_file()}
    assert there == {*SHARDS, *(path.name for path in (ROOT / "helpers/tiny/model").glob("*.json")),
                     "model.safetensors.index.json"}  # fmt: skip
    assert (folder / SHARDS[0]).stat().st_mode & 0o444 == 0o444, "others who share the folder may read the weights"
    assert job.state() == "COMPLETED"
    job.nothing_left()


def test_killed_half_way_it_continues_with_what_is_missing(stage, hub, tmp_path):
    hub.held = {SHARDS[1]}
    first, folder = stage(), tmp_path / "models" / "tiny"
    until("the second shard to be half there", 60, hub.reached.is_set)
    until("the other shards to be there", 60, lambda: {SHARDS[0], SHARDS[2]} <= set(hub.sent))
    until("them to be in place", 60, lambda: all((folder / SHARDS[n]).is_file() for n in (0, 2)))
    first.cancel()
    assert first.ended().startswith("cancelled: "), first
    assert checkpoint.problems(folder) == [
        f"{SHARDS[1]} is missing: remove it if it is there, and stage the model again."
    ]

    hub.release()
    hub.sent.clear()
    second = stage()
    assert second.ended().startswith("finished: complete: 3 shards"), second
    assert [name for name in hub.sent if name.endswith(".safetensors")] == [SHARDS[1]], "whole shards stay"
    assert list(folder.rglob("*.incomplete")) == []


def test_a_truncated_shard_is_fetched_again(stage, hub, tmp_path):
    folder = tmp_path / "models" / "tiny"
    assert stage().ended().startswith("finished"), "the first time"
    (folder / SHARDS[2]).write_bytes((folder / SHARDS[2]).read_bytes()[:-100])
    hub.sent.clear()
    assert stage().ended().startswith("finished"), "the second time"
    assert hub.sent == [SHARDS[2]]


def test_a_repository_that_lacks_a_shard_is_told_apart(cluster, stage, hub, repository, tmp_path):
    broken = tmp_path / "broken"
    split_model(ROOT / "helpers/tiny/model", broken, 3)
    (broken / SHARDS[1]).unlink()
    hub.models["workshop/broken"] = broken
    job = stage("workshop/broken")
    assert job.ended().startswith(f"failed: workshop/broken is not whole ({SHARDS[1]})"), job
    assert job.state() == "FAILED"


def test_a_gated_model_needs_the_token_which_no_log_shows(stage, hub):
    hub.gated = {"workshop/tiny"}
    refused = stage()
    assert refused.ended().startswith("failed: workshop/tiny is gated, and your token may not read it: "), refused
    granted = stage(HF_TOKEN=TOKEN)
    assert granted.ended().startswith("finished: complete"), granted
    for job in (refused, granted):
        slurm_log = job.cluster.folder / f"stage_weights-{job.id}.log"
        for log in [*job.folder.iterdir(), slurm_log]:
            assert TOKEN not in log.read_text(), log


@pytest.mark.parametrize(
    "change, story",
    [
        ({"model": "workshop/tinny"}, "has no model workshop/tinny that you may see"),
        ({"model": "tiny"}, "it must be OWNER/NAME on Hugging Face"),
        ({"HF_ENDPOINT": f"http://{GATEWAY}:9"}, "cannot be reached from node"),
        ({"DEST": "/proc/models"}, "cannot be written"),
        ({"DEST": ""}, "set SITE_MODELS in the site profile, or DEST="),
    ],
    ids=["wrong name", "no id", "no network", "no right to write", "nowhere to go"],
)
def test_what_stands_in_the_way_is_one_sentence(stage, change, story):
    job = stage(change.pop("model", "workshop/tiny"), **change)
    outcome = job.ended()
    assert outcome.startswith("failed: ") and story in outcome and "Traceback" not in outcome, job
    assert job.state() == "FAILED"
