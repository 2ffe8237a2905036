"""A model's folder, whole and broken in every way a copy breaks; and what staging decides before it downloads."""

import json
import os
import shutil
import struct
import zipfile

import pytest

from helpers import checkpoint, staging
from helpers.deployments import SMALL_MODEL

TENSORS = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}


def safetensors(path, names, size=64):
    header = {
        name: {"dtype": "U8", "shape": [size], "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate(names)
    }
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size * len(names)))


@pytest.fixture
def model(tmp_path):
    for name, tensors in TENSORS.items():
        safetensors(tmp_path / name, tensors)
    where = {tensor: shard for shard, tensors in TENSORS.items() for tensor in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


FIRST, SECOND = TENSORS


def test_a_whole_model_has_no_problems(model, capsys):
    assert checkpoint.problems(model) == checkpoint.problems(SMALL_MODEL) == []
    assert checkpoint.main([str(model)]) == 0
    assert capsys.readouterr().out == "complete: 2 shards, 0.000 GB\n"


def cut(model):
    os.truncate(model / SECOND, (model / SECOND).stat().st_size - 10)


def cut_in_header(model):
    os.truncate(model / SECOND, 20)


def link_to_nothing(model):
    (model / SECOND).unlink()
    (model / SECOND).symlink_to(model / "gone")


@pytest.mark.parametrize(
    "harm, story",
    [
        (lambda m: (m / SECOND).unlink(), f"{SECOND} is missing: "),
        (cut, f"{SECOND} is truncated: it has "),
        (cut_in_header, f"{SECOND} is truncated: it has 20 bytes and not even its header is whole"),
        (lambda m: (m / SECOND).write_bytes(b""), f"{SECOND} is truncated: it has 0 bytes"),
        (lambda m: (m / SECOND).write_text("<html>404 not found</html>"), f"{SECOND} is no safetensors file"),
        (lambda m: (m / SECOND).open("ab").write(b"more"), f"{SECOND} is too long"),
        (lambda m: safetensors(m / SECOND, ["d"]), f"{SECOND} lacks 1 tensors its index expects, c for one"),
        (link_to_nothing, f"{SECOND} is a link to a file that is gone"),
        (lambda m: (m / "config.json").unlink(), "holds no config.json"),
        (lambda m: (m / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda m: (m / "model.safetensors.index.json").write_text("{"), "model.safetensors.index.json cannot be read"),
        (shutil.rmtree, "There is no folder"),
    ],
)
def test_each_fault_is_one_sentence(model, capsys, harm, story):
    harm(model)
    (sentence,) = checkpoint.problems(model)
    assert story in sentence and sentence.endswith(".") and "\n" not in sentence
    assert checkpoint.main([str(model)]) == 1
    assert sentence in capsys.readouterr().out


def test_without_an_index_the_names_count_the_shards(model):
    (model / "model.safetensors.index.json").unlink()
    assert checkpoint.problems(model) == []
    (model / FIRST).unlink()
    assert checkpoint.problems(model) == [f"{FIRST} is missing: remove it if it is there, and stage the model again."]


def test_weights_of_pytorch_are_archives_with_an_end(model):
    for name in (*TENSORS, "model.safetensors.index.json"):
        (model / name).unlink()
    with zipfile.ZipFile(model / "pytorch_model.bin", "w") as archive:
        archive.writestr("data", bytes(1000))
    assert checkpoint.problems(model) == []
    os.truncate(model / "pytorch_model.bin", 500)
    assert "pytorch_model.bin is truncated" in checkpoint.problems(model)[0]


def test_a_folder_without_weights_says_so(model):
    for name in (*TENSORS, "model.safetensors.index.json"):
        (model / name).unlink()
    assert "holds no weights" in checkpoint.problems(model)[0]


def test_the_command_wants_one_folder(capsys):
    with pytest.raises(SystemExit) as ended:
        checkpoint.main([])
    assert ended.value.code == 2 and "python -m helpers.checkpoint" in capsys.readouterr().err


# --- staging, up to the download --------------------------------------------------------------------------------------


def test_the_same_weights_in_other_formats_are_left_out():
    offered = ["config.json", "model-00001-of-00001.safetensors", "pytorch_model.bin", "original/consolidated.00.pth",
               "consolidated.safetensors", "tokenizer.model", "model.gguf", "original/params.json"]  # fmt: skip
    assert staging.wanted(offered) == ["config.json", "model-00001-of-00001.safetensors", "tokenizer.model"]
    assert staging.wanted(["consolidated.safetensors", "params.json"]) == ["consolidated.safetensors", "params.json"]
    assert staging.wanted(["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path):
    whole = tmp_path / "whole.safetensors"
    whole.write_bytes(bytes(1000))
    with pytest.raises(staging.StagingError, match="GB free and .* GB are needed: free some, or name another DEST"):
        staging._prepare(tmp_path, {"whole.safetensors": 1000, "huge.safetensors": 10**18})
    assert whole.exists()


def test_a_file_of_the_wrong_size_is_fetched_anew_and_old_parts_go(tmp_path):
    (tmp_path / "short.safetensors").write_bytes(bytes(10))
    parts = tmp_path / ".cache" / "huggingface" / "download"
    parts.mkdir(parents=True)
    for name, age in (("old.incomplete", 3600), ("growing.incomplete", 0)):
        (parts / name).touch()
        os.utime(parts / name, (os.stat(parts).st_mtime - age,) * 2)
    staging._prepare(tmp_path, {"short.safetensors": 1000})
    assert not (tmp_path / "short.safetensors").exists()
    assert [part.name for part in parts.iterdir()] == ["growing.incomplete"]


@pytest.mark.parametrize(
    "raised, story",
    [
        (OSError(28, "No space left on device"), "storage is full"),
        (OSError(122, "Disk quota exceeded"), "storage is full"),
        (TimeoutError("timed out"), "cannot be reached from"),
        (KeyError("sha"), "could not be fetched (RuntimeError: a worker failed)"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_sentence(raised, story):
    wrapped = RuntimeError("a worker failed")
    wrapped.__cause__ = raised
    told = str(staging._story("a/b", wrapped))
    assert story in told and "\n" not in told
