"""Is a model's folder whole? Every shard that its index names, and every byte that a shard's header promises.

`python -m helpers.checkpoint FOLDER` says so, or names what is missing. The standard library alone.
"""

import argparse
import json
import struct
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GB = 10**9
MOST_HEADER = 100 * 10**6  # bytes; the safetensors library refuses a longer header
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "tiktoken.model")


@dataclass(frozen=True)
class Shards:
    """The files of weights a model should have, and for each the tensors its index expects in it (none without one)."""

    names: list[str]
    tensors: dict[str, set[str]]


def problems(folder: str | Path) -> list[str]:
    """What is wrong with a model's folder, a sentence with the mend for each file; empty when the model is whole."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return [f"There is no folder {folder}: stage the model there, or correct the path."]
    found = []
    if not (folder / "config.json").is_file():
        found.append(f"{folder} holds no config.json, without which vLLM cannot tell what model it is: stage it again.")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.append(f"{folder} holds no tokenizer ({', '.join(TOKENIZERS[:2])} or another): stage it again.")
    try:
        shards = expected(folder)
    except ValueError as error:
        return [*found, str(error)]
    for name in shards.names:
        if fault := _fault(folder / name, shards.tensors.get(name, set())):
            found.append(f"{name} {fault}: remove it if it is there, and stage the model again.")
    return found


def expected(folder: Path) -> Shards:
    """The shards the index names, or those whose names count them, or the only file.

    Raises ValueError when the folder holds no weights, or an index that cannot be read.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            return _indexed(folder / name)
    for name in SINGLE:
        if (folder / name).is_file():
            return Shards([name], {})
    for path in sorted(folder.glob("*-of-*.safetensors")):  # model-00001-of-00004.safetensors without an index
        stem, _, count = path.stem.rpartition("-of-")
        prefix, _, number = stem.rpartition("-")
        if number.isdecimal() and count.isdecimal():
            every = range(1, int(count) + 1)
            return Shards([f"{prefix}-{n:0{len(number)}}-of-{count}.safetensors" for n in every], {})
    raise ValueError(f"{folder} holds no weights (model.safetensors, or shards with their index): stage the model.")


def summary(folder: str | Path) -> str:
    """Number and size of the shards that are there, as in "17 shards, 65.5 GB" (10^9 bytes). Raises as `expected`."""
    folder = Path(folder).expanduser()
    present = [folder / name for name in expected(folder).names if (folder / name).is_file()]
    size = sum(path.stat().st_size for path in present)
    return f"{len(present)} shard{'s' * (len(present) != 1)}, {size / GB:,.{1 if size > GB else 3}f} GB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when the model is whole, 1 with the faults when it is not."""
    parser = argparse.ArgumentParser("python -m helpers.checkpoint", description="Is a model's folder whole?")
    parser.add_argument("folder", type=Path, help="with config.json, a tokenizer and the shards of weights")
    folder = parser.parse_args(arguments).folder
    found = problems(folder)
    for sentence in found:
        print(sentence)
    if not found:
        print(f"complete: {summary(folder)}")
    return 1 if found else 0


def _indexed(index: Path) -> Shards:
    try:
        where = json.loads(index.read_bytes())["weight_map"]
        tensors: dict[str, set[str]] = {}
        for tensor, shard in where.items():
            tensors.setdefault(shard, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name} cannot be read ({error}): remove it and stage the model again.") from None
    return Shards(sorted(tensors), tensors)


def _fault(path: Path, tensors: set[str]) -> str:
    """What is wrong with a shard, after its name in a sentence; empty when it is whole."""
    if path.is_symlink() and not path.exists():
        return "is a link to a file that is gone"
    if not path.is_file():
        return "is missing"
    if path.suffix == ".bin":  # a zip archive, whose directory stands at its end
        return "" if zipfile.is_zipfile(path) else "is truncated"
    return _safetensors_fault(path, tensors)


def _safetensors_fault(path: Path, tensors: set[str]) -> str:
    """A file of eight bytes that count the header's, a JSON header with each tensor's place, and the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if length > MOST_HEADER:
            return "is no safetensors file"
        if not length or size < 8 + length:
            return f"is truncated: it has {size:,} bytes and not even its header is whole"
        try:
            header = json.loads(file.read(length))
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is no safetensors file"
    promised = 8 + length + max(ends.values(), default=0)
    if size != promised:
        return f"{'is truncated' if size < promised else 'is too long'}: it has {size:,} bytes of {promised:,}"
    absent = sorted(tensors - set(ends))
    return f"lacks {len(absent)} tensors its index expects, {absent[0]} for one" if absent else ""


if __name__ == "__main__":
    sys.exit(main())
