"""Every command of every lab, run on the test cluster in the order in which a learner types it; what the text promises is seen."""

import os
import shutil
import subprocess
import sys
import time

import lab_session
import lab_text
import pytest
from testbed import OURS, ROOT, until

LABS = sorted((ROOT / "labs").glob("*.md"))
GUIDES = [path for path in LABS if path.name.startswith("lab")]
PARTS = ("**Questions.**", "**Objectives.**", "**Time.**", "**You need**", "**Predict.**", "## What goes wrong", "## Try it",
         "<details>", "## Takeaways", "**Next:**")  # fmt: skip
COPIED = ("labs", "slurm", "helpers", "pyproject.toml", "Makefile")
TIMEOUT = 900  # seconds for a lab; a quiet machine takes a fifth


# --- the cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(testbed, tmp_path):
    """A copy of the repository with an empty WORKSHOP_HOME, and the environment of a learner at the test cluster.

    What a lab leaves behind fails its test, and is removed.
    """
    folder = tmp_path / "workshop"
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "here.env"))
        else:
            shutil.copy(source, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) and k != "PYTHONPATH"}
    env = kept | OURS | {"SMALL": "1", "WORKSHOP_HOME": str(tmp_path / "home"), lab_session.MARK: str(tmp_path)}
    out_before = _nodes_out(env)
    yield folder, env
    drained = _nodes_out(env) - out_before
    for node in drained:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], env=env, check=False)
    left = {f"job {job}": job for job in _jobs(folder, env)}
    if left:
        subprocess.run(["scancel", *left.values()], env=env, check=False)
    until(lambda: f"the end of {left}", 60, lambda: not _jobs(folder, env))
    deadline = time.monotonic() + 15
    while (alive := lab_session.processes(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in alive:
        process.kill()
    files = [str(path) for path in (tmp_path / "home" / "servers").glob("*.json")]
    assert not [*left, *map(str, alive), *files, *drained], "the lab left this behind"


def _jobs(folder, env):
    """Jobs that wait or run and were submitted from this folder."""
    listed = subprocess.run(["squeue", "-h", "-o", "%A %Z"], env=env, text=True, capture_output=True, check=True).stdout
    return [job for job, place in (line.split(maxsplit=1) for line in listed.splitlines()) if place == str(folder)]


def _nodes_out(env):
    """Names of the nodes that take no jobs."""
    listed = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%N %T"], env=env, text=True, capture_output=True, check=True
    ).stdout
    return {name for name, state in map(str.split, listed.splitlines()) if state.startswith(("drain", "down"))}


@pytest.mark.timeout(TIMEOUT + 150)
@pytest.mark.parametrize("lab", LABS, ids=lambda path: path.stem)
def test_every_command(lab, workshop, capsys):
    folder, env = workshop
    ran = lab_session.run(lab_text.read(lab), folder, env, TIMEOUT)
    with capsys.disabled():
        slow = ", ".join(f"{one.seconds:.0f} s at line {one.block.line}" for one in ran if one.seconds > 5)
        print(f"\n{lab.name}: {len(ran)} blocks ran in {sum(one.seconds for one in ran):.0f} s ({slow or 'none slow'})")
    broken = lab_session.promises_broken(ran)
    assert not broken, "\n".join(broken)


# --- the texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lab", GUIDES, ids=lambda path: path.stem)
def test_parts_of_a_lab(lab):
    text = lab.read_text()
    assert [part for part in PARTS if part not in text] == []
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>Answer</summary>")


def test_commands_that_are_not_run_say_why(capsys):
    """Prints the list; a command without a reason is an error in lab_text.read."""
    listed = [(lab, block) for lab in LABS for block in lab_text.read(lab) if block.not_run is not None]
    with capsys.disabled():
        print("\ncommands of the labs that are not run here:")
        for lab, block in listed:
            first = next(line for line in block.code.splitlines() if line.strip())
            print(f"  {lab.name}:{block.line}: {first[:60]}: {block.not_run}")
    blocks = sum(len(lab_text.read(lab)) for lab in LABS)
    assert len(listed) < blocks / 4, "most commands of a lab are to be run"


def test_bash_takes_every_block():
    """Those that are not run as well."""
    for lab in LABS:
        for block in lab_text.read(lab):
            done = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True, check=False)
            assert not done.returncode, f"{lab.name}:{block.line}: {done.stderr}"


# --- the tests themselves: what they are to find, they find -----------------------------------------------------


def _lab(folder, text):
    path = folder / "lab.md"
    path.write_text(text)
    return lab_text.read(path)


def _run(folder, text, timeout=20):
    place = folder / "place"
    place.mkdir(exist_ok=True)
    return lab_session.run(_lab(folder, text), place, dict(os.environ), timeout)


def test_blocks_share_a_shell_and_promises_are_seen(tmp_path):
    text = (
        "```bash\nA=7; cd /\n```\n```bash\necho $A $PWD\n```\n"
        "<!-- output contains: 7 / -->\n<!-- output matches: ^\\d -->\n```text\n7 /\n```\n"
        "<!-- exits: 3 -->\n```bash\n(exit 3)\n```\n<!-- not run: it needs a laptop -->\n```bash\nfalse\n```\n"
    )
    ran = _run(tmp_path, text)
    assert len(ran) == 3 and not lab_session.promises_broken(ran)


@pytest.mark.parametrize("code", ["false", "true\nfalse\ntrue", "false | cat", "ls /no/such", "echo $(", "exit 0"])
def test_a_block_that_fails_is_shown(tmp_path, code):
    with pytest.raises(lab_session.BlockError, match="the block at line 4"):
        _run(tmp_path, f"```bash\necho first\n```\n```bash\n{code}\n```\n```bash\necho last\n```\n")


def test_a_block_that_hangs_is_ended(tmp_path):
    with pytest.raises(lab_session.BlockError, match="more than 1 s"):
        _run(tmp_path, "```bash\nsleep 60\n```\n", timeout=1)


@pytest.mark.parametrize("code", ["true", "(exit 2)"])
def test_a_failure_that_does_not_come_is_found(tmp_path, code):
    with pytest.raises(lab_session.BlockError, match="line 2"):
        _run(tmp_path, f"<!-- exits: 1 -->\n```bash\n{code}\n```\n")


@pytest.mark.parametrize("mark", ["output contains: 42", "output matches: ^42$", "output as it is"])
def test_a_promise_that_is_not_kept_is_found(tmp_path, mark):
    ran = _run(tmp_path, f"```bash\necho 43\n```\n<!-- {mark} -->\n```text\n42\n```\n")
    assert len(lab_session.promises_broken(ran)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run: -->\n```bash\nls\n```\n",
        "<!-- not run: because -->\n```bash\nls\n```\n",
        "```bash\nls\n```\n```text\nno mark\n```\n",
        "```bash\nls\n```\n<!-- output contains: a -->\n```text\nb\n```\n",
        "```bash\nls\n```\n<!-- not checked: -->\n```text\nb\n```\n",
        "<!-- exits: 1 -->\nwords between\n```bash\nls\n```\n",
        "<!-- output as it is -->\n```text\nbefore any command\n```\n",
    ],
)
def test_wrong_marks_are_found(tmp_path, text):
    with pytest.raises(lab_text.LabError):
        _lab(tmp_path, text)


def test_what_is_left_behind_is_found(tmp_path):
    env = {**os.environ, lab_session.MARK: str(tmp_path)}
    process = subprocess.Popen(["sleep", "60"], env=env)
    try:
        assert [found.pid for found in lab_session.processes(str(tmp_path))] == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert not lab_session.processes(str(tmp_path))
