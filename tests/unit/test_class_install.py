"""One installation for a class: the command run for real, in a clone whose packages are small ones of our own."""

import grp
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from test_install import backend, copy_of_the_project

from helpers import class_install, materials
from helpers.class_install import ClassInstallError, check

ROOT = Path(__file__).parents[2]
LESSON = "notebooks/00_start_here.ipynb"
#: The clone's own package, installed as pip installs an editable one: by a path.
EDITABLE = """
import os
build = build_wheel
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = build(folder)
    with zipfile.ZipFile(f"{folder}/{name}", "a") as wheel:
        wheel.writestr("ours.pth", os.getcwd())
    return name
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the workshop in which `pinned`, one package of our own, stands for JupyterLab and all the others."""
    copy = copy_of_the_project(tmp_path_factory.mktemp("clone") / "workshop")
    (copy / "backend.py").write_text(backend("ours") + EDITABLE)
    with zipfile.ZipFile(next((copy / "wheels").glob("pinned-*.whl")), "a") as wheel:
        wheel.writestr("ipykernel.py", "")
        wheel.writestr("jupyterlab.py", "__version__ = '4'")
    kept = ("helpers/", "notebooks/00", "labs/README.md", "slurm/")
    materials.copy(ROOT, [name for name in class_install.files() if name.startswith(kept)], copy)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


def run(clone: Path, *arguments: object) -> tuple[int, str]:
    """(exit code, all it printed) of the command in the clone; pip sees the clone's folder of wheels and no index."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone / "wheels")}
    command = [getattr(sys, "_base_executable", sys.executable), "-m", "helpers.class_install", *map(str, arguments)]
    done = subprocess.run(command, cwd=clone, env=keep | offline, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def modes(folder: Path) -> dict[str, int]:
    """The modes of everything below, but for what the instructor fills."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in found
        if path.relative_to(folder).parts[0] not in class_install.OPEN
    }


def test_a_class_gets_all_it_needs_and_can_change_nothing(clone, tmp_path):
    folder = tmp_path / "shared" / "class"
    code, printed = run(clone, folder)
    assert code == 0, printed
    assert printed.splitlines()[-1].startswith(f"Ready: {folder}.")

    shared = modes(folder)
    assert len(shared) > 300 and not [name for name, mode in shared.items() if mode & 0o222]
    assert not [name for name, mode in shared.items() if mode & 0o444 != 0o444]
    assert os.access(folder / "class/servers", os.W_OK) and (folder / "models").is_dir()

    kernel = json.loads((folder / "share/jupyter/kernels/python3/kernel.json").read_text())
    assert kernel["argv"][0] == str(folder / ".venv/bin/python") and kernel["display_name"] == "LLM serving workshop"
    found = subprocess.run([kernel["argv"][0], "-c", "import helpers; print(helpers.__file__)"], cwd="/", text=True,
                           capture_output=True, env={})  # fmt: skip
    assert found.stdout.strip() == str(folder / "helpers/__init__.py")
    lesson = json.loads((folder / "materials" / LESSON).read_text())
    assert not any(cell.get("outputs") for cell in lesson["cells"])
    assert f"  {LESSON}\n" in (folder / "materials/SHA256SUMS").read_text()
    settings = yaml.safe_load((folder / "ondemand/settings.yml").read_text())
    assert settings["folder"] == str(folder)
    assert "# - [llama-3.1-8b, " in (folder / "ondemand/settings.yml").read_text()
    assert os.access(folder / "ondemand/template/script.sh.erb", os.X_OK)

    (folder / "class/servers/one.json").write_text("{}")
    (clone / "labs/README.md").write_text("changed")
    started = time.monotonic()
    code, printed = run(clone, folder, "--group", grp.getgrgid(os.getgid()).gr_name)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750 and folder.stat().st_gid == os.getgid()
    assert code == 0 and "Packages for" not in printed and time.monotonic() - started < 10
    drop_boxes = {name: stat.S_IMODE((folder / "class" / name).stat().st_mode) for name in ("keys", "progress")}
    assert drop_boxes == {"keys": 0o1730, "progress": 0o1730}, "the class adds its own and lists nobody's"
    assert (folder / "materials/labs/README.md").read_text() == "changed"
    assert (folder / "class/servers/one.json").exists() and not [m for m in modes(folder).values() if m & 0o222]


def test_a_step_that_fails_ends_it_and_is_named(clone, tmp_path):
    (clone / "requirements/dev.txt").write_text("")
    pins = clone / "requirements/cpu.txt"
    before = pins.read_text()
    pins.write_text("nowhere==1.0\n")
    try:
        code, printed = run(clone, tmp_path / "class")
    finally:
        pins.write_text(before)
    assert code == 2 and "Traceback" not in printed
    assert (
        printed.splitlines()[-1]
        == "The packages could not be installed, for the reason above. Run the same command again."
    )


def test_folders_that_cannot_serve_a_class(tmp_path):
    with pytest.raises(ClassInstallError, match="lies in this copy of the workshop"):
        check(ROOT / "class")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(ClassInstallError, match="is no installation of the workshop"):
        check(tmp_path / "other")
    with pytest.raises(ClassInstallError, match=r"cannot be written \("):
        check(Path("/proc/nowhere"))
    with pytest.raises(ClassInstallError, match="There is no group nosuchgroup"):
        check(tmp_path / "new", "nosuchgroup")
    assert sorted(os.listdir(tmp_path / "other")) == ["thesis.tex"]


def test_a_copy_without_git_is_told_so(clone, tmp_path):
    shutil.copytree(clone / "helpers", tmp_path / "workshop/helpers")
    code, printed = run(tmp_path / "workshop", tmp_path / "class")
    assert code == 2 and "is no git repository" in printed and "Traceback" not in printed


def test_a_notebook_names_the_kernel_that_the_class_has(tmp_path):
    """The metadata are those that JupyterLab writes when it opens one: opening is no change."""
    code = "import json; from ipykernel.ipkernel import IPythonKernel; print(json.dumps(IPythonKernel().language_info))"
    kernel = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=True
    )  # one in here would stay
    shown = json.loads(materials.stripped((ROOT / LESSON).read_text()))["metadata"]
    told = {name: value for name, value in json.loads(kernel.stdout).items() if name != "version"}
    assert {name: shown["language_info"][name] for name in told} == told
    assert shown["language_info"]["version"] == sys.version.split()[0]
    class_install.add_kernel(tmp_path)
    spec = json.loads((tmp_path / "share/jupyter/kernels/python3/kernel.json").read_text())
    assert {"name": "python3", **{k: spec[k] for k in ("display_name", "language")}} == shown["kernelspec"]
