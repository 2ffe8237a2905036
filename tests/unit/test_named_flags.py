"""Every option that a lesson, a lab, a slide or a README names exists: in the pinned vLLM, in our own programs, or in Slurm."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers.levers import LEVERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("labs/*.md"), *ROOT.glob("slides/*.md"), *ROOT.glob("slurm/*.md"), ROOT / "README.md"]
)  # fmt: skip
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
DEFINED = re.compile(r'add_argument\(\s*(?:"-\w+", *)?"(--[a-z-]+)"')
#: Options of sbatch, srun, salloc, squeue, sinfo, sacct, scancel and scontrol, and of curl.
SLURM = {
    "--account", "--array", "--batch", "--constraint", "--cpus-per-task", "--dependency", "--exclude",
    "--export", "--format", "--gpus-per-node", "--header", "--job-name", "--jobid", "--jobs", "--list-reasons",
    "--me", "--mem", "--name", "--no-shell", "--nodelist", "--nodes", "--noheader", "--ntasks",
    "--ntasks-per-node", "--output", "--overlap", "--parsable", "--partition", "--pty", "--signal", "--start",
    "--states", "--time", "--help", "--kill-on-bad-exit",
}  # fmt: skip
CURL = {"--data", "--header", "--no-buffer", "--silent", "--write-out"}
JUPYTER = {"--no-browser", "--port"}
#: Wrong on purpose, or no option of anything: what lesson 09 and lab 6 break deployments with.
ON_PURPOSE = {"--enable-hc-sp", "--enable-warp-speed", "--flag", "--swap-space"}


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def ours() -> set[str]:
    programs = [*ROOT.glob("helpers/**/*.py"), *ROOT.glob("labs/scripts/*.py")]
    return {flag for path in programs for flag in DEFINED.findall(path.read_text())}


@pytest.fixture(scope="module")
def vllm() -> dict:
    """What the pinned vLLM has, and what it says of the levers' flags: one import of vLLM."""
    code = """if True:
        import json, sys
        from helpers.vllm_flags import check, known
        print(json.dumps({"known": sorted(known()), "said": [check(flags) for flags in json.load(sys.stdin)]}))
    """
    flags = [list(lever.flags) for lever in LEVERS] + [["--kv-cache-dtpye", "fp8"]]
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(flags), cwd=ROOT, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def unknown(text: str, vllm: dict) -> set[str]:
    return set(FLAG.findall(text)) - set(vllm["known"]) - ours() - SLURM - CURL - JUPYTER - ON_PURPOSE


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_that_a_document_names_exists(path: Path, vllm) -> None:
    assert unknown(text_of(path), vllm) == set()


def test_the_pinned_vllm_takes_the_flags_of_every_lever(vllm) -> None:
    *said, misspelt = vllm["said"]
    assert {lever.name: words for lever, words in zip(LEVERS, said, strict=True) if words} == {}
    assert misspelt == "vLLM has no flag --kv-cache-dtpye: did you mean --kv-cache-dtype?"


def test_a_flag_that_is_gone_would_be_found(vllm) -> None:
    text = "`vllm serve M --max-model-len 8 --num-lookahead-slots 4 --speculative-model S` -- as --no-enable-prefix-caching says"
    assert unknown(text, vllm) == {"--num-lookahead-slots", "--speculative-model"}
