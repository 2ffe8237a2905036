"""The parts that the jobs of an array have answered, put together: every line of the input once."""

import json
import re
from pathlib import Path
from typing import Any

from helpers.batch_job import COMPLETE, RUNNING, BatchError, Counts, Shard
from helpers.batch_output import Results, errors_path, manifest_path, read_manifest, write_whole


def parts(output: Path) -> list[Path]:
    """The parts that belong to this output, in their order. Raises BatchError when there are none, or of two divisions."""
    name = re.compile(re.escape(output.stem) + r"\.\d+-of-(\d+)" + re.escape(output.suffix))
    counts = {int(match[1]) for path in output.parent.glob("*") if (match := name.fullmatch(path.name))}
    if not counts:
        raise BatchError(f"{output} has no parts. Run its shards first: --shard 0/4, --shard 1/4, and so on.")
    if len(counts) > 1:
        raise BatchError(f"{output} has parts of {' and of '.join(map(str, sorted(counts)))}. Move one division away.")
    count = counts.pop()
    return [Shard(index, count).part_of(output) for index in range(count)]


def missing(output: Path) -> list[str]:
    """What is still to be done before the parts can be merged, in words; empty when nothing is. Raises as `parts`."""
    states = {part.name: (read_manifest(part) or {}).get("state", "not begun") for part in parts(output)}
    return [f"{name} is {state}" for name, state in states.items() if state != COMPLETE]


def merge(output: Path) -> Counts:
    """Write all parts, which must be complete, into `output`; they stay. Raises BatchError when they do not fit together."""
    files = parts(output)
    manifests = [_manifest_of(part) for part in files]
    whole = _manifest_of_all(files, manifests)
    counts = Counts(whole["lines"])
    with Results(output, wait=True) as results:
        before = read_manifest(output)
        if before is None and output.stat().st_size:
            raise BatchError(f"{output} is there and has no manifest. Move it away.")
        if before and before["sha256"] != whole["sha256"]:
            raise BatchError(f"{output} holds the answers to another file than its parts. Move it away.")
        write_whole(manifest_path(output), json.dumps(whole, indent=1) + "\n")
        results.copy([(part, errors_path(part)) for part in files])
        counts.answered = sum(results.recover(whole["last_line"]))
        counts.errors = results.errors
        if counts.left:
            raise BatchError(f"The parts of {output} have {counts.left:,} lines too few. Run its shards again.")
        results.sync()
        whole |= {"answered": counts.answered, "errors": counts.errors, "state": COMPLETE}
        write_whole(manifest_path(output), json.dumps(whole, indent=1) + "\n")
    return counts


def _manifest_of(part: Path) -> dict[str, Any]:
    if (manifest := read_manifest(part)) is None:
        raise BatchError(f"{part} is not begun. Run its shard first.")
    return manifest


def _manifest_of_all(files: list[Path], manifests: list[dict[str, Any]]) -> dict[str, Any]:
    first, models = manifests[0], {manifest["model"] for manifest in manifests if "model" in manifest}
    for part, manifest in zip(files, manifests, strict=True):
        for key in ("sha256", "defaults"):
            if manifest[key] != first[key]:
                raise BatchError(f"{part} was made with another {key} than {files[0]}. Move one away and run it again.")
    if len(models) > 1:
        raise BatchError(f"{' and '.join(sorted(models))} have answered the parts. Run them with one model.")
    runs = [run for manifest in manifests for run in manifest["runs"]]
    lines = sum(manifest["lines"] for manifest in manifests)
    model = {"model": models.pop()} if models else {}
    return {**first, **model, "shard": {"index": 0, "count": 1}, "runs": runs, "lines": lines, "state": RUNNING}
