"""Bring a model's weights from the Hugging Face Hub to shared storage, and check that all of them arrived.

slurm/stage_weights.sbatch runs `python3 -m helpers.staging MODEL FOLDER` on a compute node. The token, for a gated model,
is read by huggingface_hub itself from HF_TOKEN or from `hf auth login`; this program never sees it.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from helpers import checkpoint
from helpers.errors import WorkshopError
from helpers.hardware import GB

REPORT_SECONDS = 15
STALE_SECONDS = 600  # a part of a download that has not grown for so long belongs to nobody
NETWORK = ("httpx", "requests", "urllib3")  # whichever huggingface_hub is built on
SPARE = 1.02  # of the model's size: file systems need some room of their own

# Beside safetensors shards, repositories keep the same weights in other formats.
OTHER_FORMATS = (
    "*.bin", "*.pth", "*.pt", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "original/*", "metal/*",
)  # fmt: skip


class StagingError(WorkshopError):
    """A model that cannot be brought here, with what to do about it."""


def stage(model: str, folder: Path) -> str:
    """Download what is not there yet and verify all of it; returns "17 shards, 65.5 GB".

    Shards that are whole stay; the rest is fetched. Raises StagingError.
    """
    os.umask(0o022)  # weights are no secret: whoever may enter the folder above may read them
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a log is no terminal
    os.environ.setdefault("HF_XET_CACHE", f"{os.environ.get('TMPDIR', '/tmp')}/xet")  # not in a home with a small quota
    commit, sizes = _offer(model)
    _prepare(folder, sizes)
    left = sum(sizes.values()) - _arrived(folder, sizes)
    print(f"{model}: {len(sizes)} files, {sum(sizes.values()) / GB:,.1f} GB, {left / GB:,.1f} GB to fetch", flush=True)
    _download(model, commit, folder, sizes)
    return _verify(model, folder, sizes)


def wanted(names: Iterable[str]) -> list[str]:
    """The files to fetch: all but other formats of the same weights, where there are safetensors."""
    names = sorted(names)
    if not any(fnmatch(name, "*.safetensors") and "/" not in name for name in names):
        return names
    kept = [name for name in names if not any(fnmatch(name, pattern) for pattern in OTHER_FORMATS)]
    whole = any(fnmatch(name, "model*.safetensors") for name in kept)
    return [name for name in kept if not (whole and fnmatch(name, "consolidated*.safetensors"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. The last line printed is the result in one sentence; returns 0 when the model is whole."""
    model, folder = sys.argv[1:] if arguments is None else arguments
    try:
        print(f"complete: {stage(model, Path(folder))} in {folder}")
    except StagingError as error:
        print(error, flush=True)
        return 1
    return 0


def _offer(model: str) -> tuple[str, dict[str, int]]:
    """The commit the Hub's main branch is at, and the size in bytes of each of its files we want."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.auth_check(model)
        info = hub.model_info(model, files_metadata=True)
    except Exception as error:
        raise _story(model, error) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return info.sha or "main", {name: sizes[name] for name in wanted(sizes)}


def _prepare(folder: Path, sizes: dict[str, int]) -> None:
    """Make the folder, drop what is broken there, and see that the rest fits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise StagingError(
            f"{folder} cannot be written ({error.strerror}): name another folder in DEST, on storage all nodes share."
        ) from error
    for name, size in sizes.items():  # huggingface_hub trusts a file that it once finished
        if (folder / name).is_file() and (folder / name).stat().st_size != size:
            (folder / name).unlink()
    _drop_parts(folder, STALE_SECONDS)
    needed = int((sum(sizes.values()) - _arrived(folder, sizes)) * SPARE)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StagingError(
            f"{folder} has {free / GB:,.1f} GB free and {needed / GB:,.1f} GB are needed: free some, or name another DEST."
        )


def _download(model: str, commit: str, folder: Path, sizes: dict[str, int]) -> None:
    from huggingface_hub import snapshot_download

    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(folder, sizes, done), daemon=True)
    reporter.start()
    try:
        snapshot_download(model, revision=commit, local_dir=folder, allow_patterns=list(sizes))
    except Exception as error:
        raise _story(model, error) from error
    finally:
        done.set()
        reporter.join()


def _verify(model: str, folder: Path, sizes: dict[str, int]) -> str:
    faults = checkpoint.problems(folder)
    short = [name for name, size in sizes.items() if not _is_whole(folder / name, size)]
    if faults or short:
        for fault in faults:
            print(fault)
        named = ", ".join(short) or faults[0].split()[0]
        raise StagingError(
            f"{model} is not whole ({named}): submit the same command again, which fetches what is missing."
        )
    _drop_parts(folder, 0)
    return checkpoint.summary(folder)


def _report(folder: Path, sizes: dict[str, int], done: threading.Event) -> None:
    """Lines such as `12.3 of 141.1 GB (8%), 410 MB/s, about 5 minutes left`."""
    total, began, before = sum(sizes.values()), time.monotonic(), _arrived(folder, sizes)
    while not done.wait(REPORT_SECONDS):
        arrived = min(total, _arrived(folder, sizes) + sum(part.stat().st_size for part in _parts(folder)))
        speed = max(arrived - before, 0) / (time.monotonic() - began)
        left = f", about {(total - arrived) / speed / 60:.0f} minutes left" if speed else ""
        print(f"{arrived / GB:,.1f} of {total / GB:,.1f} GB ({arrived / max(total, 1):.0%}), {speed / 1e6:,.0f} MB/s{left}",
              flush=True)  # fmt: skip


def _arrived(folder: Path, sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if _is_whole(folder / name, size))


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _parts(folder: Path) -> list[Path]:
    return [part for part in (folder / ".cache").rglob("*.incomplete") if part.is_file()]


def _drop_parts(folder: Path, age: float) -> None:
    """huggingface_hub begins an interrupted file anew, under another name, and leaves the old part behind."""
    for part in _parts(folder):
        if time.time() - part.stat().st_mtime >= age:
            part.unlink(missing_ok=True)


def _story(model: str, error: Exception) -> StagingError:
    """What huggingface_hub raised, as one sentence with the mend."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    page, again = f"{hub}/{model}", "Submit the same command again: whole files are kept."
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(link, errors.GatedRepoError):
            return StagingError(
                f"{model} is gated, and your token may not read it: accept its terms at {page}, then export HF_TOKEN "
                "(or run `hf auth login`) where you submit."
            )
        if isinstance(link, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            return StagingError(
                f"{hub} has no model {model} that you may see: check the name, and HF_TOKEN if the model is private."
            )
        if isinstance(link, errors.HFValidationError):
            return StagingError(
                f"{model!r} is no Hugging Face id: MODEL must be OWNER/NAME, as in Qwen/Qwen2.5-7B-Instruct."
            )
        if status:
            return StagingError(f"{hub} answered with status {status} for {model}: try again later. {again}")
        if isinstance(link, OSError) and link.errno in (28, 122):  # no space, over quota
            return StagingError(
                f"The storage is full while {model} arrives ({link.strerror}): free some, or name another DEST."
            )
    if any(isinstance(link, OSError) or type(link).__module__.startswith(NETWORK) for link in chain):
        return StagingError(
            f"{hub} cannot be reached from {os.uname().nodename} ({type(chain[-1]).__name__}): stage on a partition with "
            f"a way to the internet, or set HTTPS_PROXY. {again}"
        )
    said = str(error).strip().partition("\n")[0]
    return StagingError(f"{model} could not be fetched ({type(error).__name__}: {said}). {again}")


if __name__ == "__main__":
    sys.exit(main())
