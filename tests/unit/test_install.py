"""Set-up: requirements/install.py run for real, in a copy with three small packages of our own instead of 240."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
INSTALL = ROOT / "requirements" / "install.py"

#: What builds the copy's packages: a wheel is a zip with two files, so no build tool is needed.
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = f"{NAME}-{VERSION}-py3-none-any.whl"
    info = f"{NAME}-{VERSION}.dist-info/"
    with zipfile.ZipFile(f"{folder}/{name}", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(NAME + ".bin", bytes(SIZE))
        wheel.writestr(info + "RECORD", "")
    return name
build_editable = build_wheel
"""


def backend(name: str, version: str = "1.0", size: int = 0) -> str:
    return f"NAME, VERSION, SIZE = {name!r}, {version!r}, {size}\n{BACKEND}"


def build(folder: Path, name: str, version: str, size: int = 0) -> None:
    room = {}
    exec(backend(name, version, size), room)
    room["build_wheel"](folder)


def copy_of_the_project(root: Path, big: int = 0) -> Path:
    """install.py and what it reads, with pins that come from a folder; `big`: bytes in the package `pinned`."""
    for folder, name in [(root, "ours"), (root / "requirements" / "vllm-metadata", "vllm")]:
        folder.mkdir(parents=True)
        (folder / "backend.py").write_text(backend(name))
        requires = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (folder / "pyproject.toml").write_text(requires)
    shutil.copy(INSTALL, root / "requirements")
    (root / "requirements" / "cpu.txt").write_text("pinned==1.0\n")
    (root / "requirements" / "dev.txt").write_text("checker==1.0\n")
    (root / "requirements" / "site.txt").write_text("pages==1.0\n")
    wheels = root / "wheels"
    wheels.mkdir()
    build(wheels, "torch", "2.13.0+cpu")
    build(wheels, "pinned", "1.0", size=big)
    build(wheels, "checker", "1.0")
    build(wheels, "pages", "1.0")
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_the_project(tmp_path_factory.mktemp("set-up") / "project")


def run(project: Path, *arguments: str, python: str = sys.executable, program: str = "", **settings: str):
    """(exit code, what it printed to stdout, to stderr); pip sees the copy's folder of wheels and no index."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels")}
    command = [python, *(["-c", program] if program else [str(project / "requirements" / "install.py")]), *arguments]
    done = subprocess.run(command, env=keep | offline | settings, capture_output=True, text=True, cwd=project)
    return done.returncode, done.stdout, done.stderr


def refused(answer) -> str:
    """The one sentence of a run that failed as it should."""
    code, _, error = answer
    assert code == 2 and "Traceback" not in error
    assert error.count("\n") == 1, error
    return error


@pytest.fixture
def install():
    """install.py as a module."""
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packages(project: Path) -> set[str]:
    listed = subprocess.run(
        [project / ".venv/bin/python", "-m", "pip", "list", "--format=json"], capture_output=True, check=True
    )
    return {package["name"] for package in json.loads(listed.stdout)}


# --- runs that succeed --------------------------------------------------------------------------------------------


def test_a_killed_run_is_taken_up_and_a_second_one_changes_nothing(project):
    command = [sys.executable, str(project / "requirements" / "install.py")]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, cwd=project)
    while not (project / ".venv" / "pyvenv.cfg").exists():
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (project / ".venv" / "bin" / "pip").exists(), "half made"

    code, out, _ = run(project)
    assert code == 0 and "Packages for cpu: done" in out
    assert packages(project) >= {"torch", "pinned", "ours", "vllm"}

    stamp = project / ".venv" / "workshop.json"
    before, started = stamp.stat().st_mtime_ns, time.monotonic()
    assert run(project) == (0, "", "")
    assert time.monotonic() - started < 5
    assert stamp.stat().st_mtime_ns == before


def test_what_was_added_stays_and_a_changed_pin_is_installed(project):
    run(project)
    code, out, _ = run(project, "dev")
    assert code == 0 and "Packages for dev: done" in out and "Packages for cpu" not in out
    code, out, _ = run(project, "site", "dev")
    assert code == 0 and "Packages for site: done" in out and "Packages for dev" not in out
    assert run(project) == run(project, "cpu", "dev") == (0, "", "")

    build(project / "wheels", "pinned", "2.0")
    pins = project / "requirements" / "cpu.txt"
    pins.write_text("pinned==2.0\n")
    assert "Packages for cpu: done" in run(project)[1]
    freeze = [project / ".venv/bin/python", "-m", "pip", "show", "pinned"]
    assert "Version: 2.0" in subprocess.run(freeze, capture_output=True, text=True).stdout


def test_a_run_stopped_in_pip_is_not_taken_for_done(project):
    """The stamp is written last: a run that failed leaves no claim to be complete."""
    run(project)
    (project / "requirements" / "cpu.txt").write_text("nowhere==1.0\n")
    assert "pip could not reach a package index or found no such pin" in refused(run(project))
    assert "cpu" not in json.loads((project / ".venv" / "workshop.json").read_text())
    (project / "requirements" / "cpu.txt").write_text("pinned==1.0\n")
    assert run(project)[0] == 0


def test_a_venv_whose_python_went_away_is_made_anew(project):
    run(project)
    python = project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    code, out, _ = run(project)
    assert code == 0 and "Making .venv" in out
    assert packages(project) >= {"torch", "pinned"}


# --- runs that are refused ----------------------------------------------------------------------------------------


def old_pythons():
    """Pythons before 3.11 on this machine, by the usual names, and where pyenv keeps them."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 11)]
    found += sorted(str(path) for path in pyenv.glob("3.*/bin/python"))
    for python in filter(None, found):
        asked = subprocess.run([python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True)
        if asked.returncode == 0 and 6 <= int(asked.stdout) < 11:
            yield python


def test_an_old_python_is_told_so_by_itself(project):
    pythons = list(old_pythons())
    if not pythons:
        pytest.skip("no Python older than 3.11 on this machine")
    for python in pythons:
        sentence = refused(run(project, python=python))
        assert "Python 3.11 to 3.13 is needed, and this is 3." in sentence and "make PYTHON=python3" in sentence


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7), (4, 0)])
def test_a_python_too_old_or_too_new_is_told_which_to_use(install, version, monkeypatch):
    monkeypatch.setattr(install, "works", lambda name: name == "python3.12")
    with pytest.raises(
        install.SetupError, match=f"this is {version[0]}.{version[1]}. Use the one that is here: make P"
    ):
        install.check_python(version)
    monkeypatch.setattr(install, "works", lambda name: False)
    with pytest.raises(
        install.SetupError, match=r"Install Python 3\.11, 3\.12 or 3\.13, then: make PYTHON=python3\.12"
    ):
        install.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_the_pythons_of_the_pins_are_welcome(install, version):
    install.check_python(version)


def test_a_shim_that_does_not_start_is_not_recommended(install, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\necho not installed >&2\nexit 127\n")
    shim.chmod(0o755)
    assert not install.works("python3.99") and not install.works("python3.98")
    shim.write_text("#!/bin/sh\nexit 0\n")
    assert install.works("python3.99")


def test_a_processor_without_avx2_is_refused(install, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Old\nflags\t\t: fpu sse4_2 avx avx512f\n")
    with pytest.raises(install.SetupError, match="needs AVX2, which this processor lacks"):
        install.check_processor(info)
    info.write_text("model name\t: New\nflags\t\t: fpu avx avx2 fma\n")
    install.check_processor(info)


def test_another_system_than_linux_is_refused(install, tmp_path):
    with pytest.raises(install.SetupError, match=r"run on Linux only\. On Windows use WSL 2"):
        install.check_processor(tmp_path / "no-proc-here")


def test_too_small_a_disk_is_refused_before_anything_is_made(install, tmp_path):
    install.check_disk(0.0001, tmp_path)
    with pytest.raises(install.SetupError, match=r"GiB free and the packages need 9999999. Free some space"):
        install.check_disk(9999999, tmp_path)


def test_an_unknown_extra_is_refused(project):
    assert "There is no extra called gpus. Choose cpu or gpu" in refused(run(project, "gpus"))


def test_a_folder_that_is_no_venv_is_left_alone(tmp_path):
    project = copy_of_the_project(tmp_path / "project")
    (project / ".venv").mkdir()
    (project / ".venv" / "thesis.txt").write_text("mine")
    assert "is there and is not a virtual environment. Move it away" in refused(run(project))
    assert (project / ".venv" / "thesis.txt").read_text() == "mine"


def test_a_missing_torch_build_is_named(project, tmp_path):
    shutil.copytree(project, tmp_path / "project", symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    (tmp_path / "project" / "wheels" / "torch-2.13.0+cpu-py3-none-any.whl").unlink()
    sentence = refused(run(tmp_path / "project"))
    assert "pip found no CPU build of torch 2.13.0" in sentence and "PIP_FIND_LINKS" in sentence


def test_no_network_is_named(project):
    (project / "requirements" / "cpu.txt").write_text("elsewhere==1.0\n")
    offline = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    assert "pip could not reach a package index" in refused(run(project, **offline))
    (project / "requirements" / "cpu.txt").write_text("pinned==1.0\n")


def test_another_python_makes_a_new_venv_which_then_serves_both(project):
    names = [f"python3.{minor}" for minor in (11, 12, 13) if minor != sys.version_info[1]]
    works = [n for n in names if shutil.which(n) and subprocess.run([n, "-c", ""], capture_output=True).returncode == 0]
    if not works:
        pytest.skip("only one Python from 3.11 to 3.13 on this machine")
    own = str(project / ".venv" / "bin" / "python")
    for python in (works[0], sys.executable):
        code, said, _ = run(project, python=python)
        assert code == 0 and "Making .venv" in said
        assert run(project, python=own) == (0, "", "")


def test_ctrl_c_says_how_to_go_on(project):
    (project / "requirements" / "cpu.txt").write_text("pinned==1.0\n# changed\n")
    keep = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels")}
    command = [sys.executable, str(project / "requirements" / "install.py")]
    made = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=keep
    )
    assert "torch for CPUs" in made.stdout.readline()
    os.killpg(made.pid, signal.SIGINT)
    _, error = made.communicate(timeout=30)
    assert made.returncode == 130
    assert "Stopped. Run it again: it goes on where it stopped." in error and "Traceback" not in error


@pytest.mark.parametrize("size", ["8m", "80m"], ids=["while making .venv", "while unpacking"])
def test_a_disk_that_fills_up_is_named(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk to fill")
    try:
        project = copy_of_the_project(disk / "project", big=100 * 2**20 if size == "80m" else 0)
        assert "GiB free and the packages need 4. Free some space" in refused(run(project))
        unchecked = "import sys; sys.path.insert(0, 'requirements'); import install; install.check_disk = print; "
        answer = run(project, program=unchecked + "sys.exit(install.main([]))")
        assert "The disk is full. Free some space" in refused(answer)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded: '/home'", "disk quota"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "no CPU build of torch"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<HTTPSConnection>: "
            "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/tqdm/\n"
            "ERROR: Could not find a version that satisfies the requirement tqdm==4.68.5 (from versions: none)",
            "Check the network",
        ),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.", "Check the network"),
        ("one\ntwo\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "Its last words: one | two | ERROR: THESE PACK"),
    ],
)
def test_what_pip_says_is_explained(install, said, meaning):
    assert meaning in install.explain(said)
    assert "\n" not in install.explain(said)
