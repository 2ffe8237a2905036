"""One installation for a class: a folder that every node sees, from which participants run all lessons.

python3 -m helpers.class_install /shared/workshop [--extra gpu] [--group GROUP] [--model OWNER/NAME ...]

It holds the workshop, a virtual environment, its one Jupyter kernel, the notebooks without outputs, models if you name
some, and the Open OnDemand app filled in for this folder. All but `class/` and `models/` is read-only: nobody's pip
changes the class's packages. The same command again brings it up to date and goes on where it was stopped. It needs
nothing but Python and the network on the machine where it runs; compute nodes need neither.
"""

import argparse
import grp
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers import class_folder, materials
from helpers.errors import WorkshopError

ROOT = Path(__file__).resolve().parents[1]
OPEN = ("class", "models")  # for the instructor to fill


class ClassInstallError(WorkshopError):
    """A folder that cannot serve a class, with what to do about it."""


def install(folder: Path, *, extra: str = "", group: str = "", models: Sequence[str] = ()) -> None:
    """Make or renew the installation. Raises ClassInstallError; what install.py or staging print stands above it."""
    check(folder, group)
    os.umask(0o022)
    _walk(folder, _writable)
    names = files()
    materials.copy(ROOT, names, folder)
    print(f"{len(names)} files of the workshop are in {folder}", flush=True)
    _run([sys.executable, str(folder / "requirements/install.py"), *filter(None, [extra])], "The packages")
    add_kernel(folder)
    count = materials.write(ROOT, names, folder / "materials")
    print(f"{count} notebooks and labs, without outputs: {folder / 'materials'}", flush=True)
    for name in OPEN:
        (folder / name).mkdir(exist_ok=True)
    (folder / "class/servers").mkdir(exist_ok=True)
    for model in models:
        target = folder / "models" / model.rpartition("/")[2]
        _run([str(python_of(folder)), "-m", "helpers.staging", model, str(target)], model)
    _name_models(folder)
    _fill_app(folder)
    _try(folder)
    _give_to(folder, group)


def check(folder: Path, group: str = "") -> None:
    """Raises ClassInstallError for a folder that is this repository, holds something else, or cannot be written."""
    if ROOT.is_relative_to(folder) or folder.is_relative_to(ROOT):
        raise ClassInstallError(f"{folder} lies in this copy of the workshop, or around it. Name a folder of its own.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "helpers/class_install.py").is_file():
        raise ClassInstallError(f"{folder} is there and is no installation of the workshop. Name a new folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o755)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ClassInstallError(
            f"{folder} cannot be written ({error.strerror}). Name a folder on shared storage that you may write."
        ) from error
    try:
        group and grp.getgrnam(group)
    except KeyError:
        raise ClassInstallError(f"There is no group {group} on this machine: `id` names yours.") from None


def files() -> list[str]:
    """The repository's files by their names below ROOT: what git knows, and the site's own profile.

    Raises ClassInstallError for a copy without git.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    if done is None or done.returncode:
        raise ClassInstallError(
            f"{ROOT} is no git repository, or git is not here. Run this in a clone of the workshop."
        )
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    site = "slurm/sites/here.env"
    return sorted({*names, *([site] if (ROOT / site).is_file() else [])})


def python_of(folder: Path) -> Path:
    """The Python of the class's environment."""
    return folder / ".venv/bin/python"


def _run(command: Sequence[str], what: str) -> None:
    """A step that tells its own story; its failure ends ours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run(command, env=environment).returncode:
        raise ClassInstallError(f"{what} could not be installed, for the reason above. Run the same command again.")


def add_kernel(folder: Path) -> None:
    """The workshop's kernel, under the name that its notebooks ask for."""
    argv = [str(python_of(folder)), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec: dict[str, Any] = {"argv": argv, "metadata": {"debugger": True}} | materials.KERNEL
    path = folder / "share/jupyter/kernels" / str(spec.pop("name")) / "kernel.json"
    materials.put(path, json.dumps(spec, indent=1).encode())


def _name_models(folder: Path) -> None:
    """Tell the folder's jobs of its models, unless the site's profile names a place."""
    profile = folder / "slurm/sites/here.env"
    if not profile.exists():
        shutil.copyfile(folder / "slurm/sites/generic.env", profile)
    text = profile.read_text()
    if any((folder / "models").iterdir()) and not re.search(r"^SITE_MODELS=\S", text, re.MULTILINE):
        materials.put(profile, f"{text}\nSITE_MODELS={folder / 'models'}\n".encode())


def _fill_app(folder: Path) -> None:
    """A copy of the app whose settings name this folder; the deployments are listed for the site to choose from."""
    from helpers import deployments

    app = folder / "ondemand"
    names = [
        path.relative_to(ROOT / "slurm/ondemand") for path in (ROOT / "slurm/ondemand").rglob("*") if path.is_file()
    ]
    materials.copy(ROOT / "slurm/ondemand", map(str, names), app)
    served = [f"  # - [{d.name}, {json.dumps(d.title)}]\n" for d in deployments.catalogue().values() if d.model]
    text = (app / "settings.yml").read_text()
    text = re.sub(r"^folder: .*$", f"folder: {json.dumps(str(folder))}", text, flags=re.MULTILINE)
    text = text.replace("servers: []\n", f"servers: []\n{''.join(served)}")
    materials.put(app / "settings.yml", text.encode())


def _try(folder: Path) -> None:
    """The environment works away from this clone: its Python finds its own helpers, JupyterLab and the kernel."""
    code = "import helpers, ipykernel, jupyterlab, sys; print(helpers.__file__, jupyterlab.__version__)"
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [str(python_of(folder)), "-c", code], cwd="/", env=environment, text=True, capture_output=True
    )
    if done.returncode or not done.stdout.startswith(str(folder)):
        raise ClassInstallError(
            f"The environment of {folder} does not work: {(done.stderr or done.stdout).strip()[-300:]}"
        )
    command = [str(python_of(folder)), "-m", "compileall", "-qq", str(folder / "helpers")]
    subprocess.run(command, env=environment, check=False)


def _give_to(folder: Path, group: str) -> None:
    """Readable by the group alone, or by everybody; written by nobody, but for class/ and models/."""
    gid = grp.getgrnam(group).gr_gid if group else -1
    _walk(folder, lambda path, mode: _read_only(path, mode, gid))
    for name in ("", *OPEN, "class/servers"):
        path = folder / name
        os.chmod(path, stat.S_IMODE(path.stat().st_mode) | (0o2700 if name else 0o700))
    if group:
        os.chmod(folder, 0o750)
        try:
            class_folder.prepare(folder / "class", group=group)
        except class_folder.ClassFolderError as error:
            raise ClassInstallError(str(error)) from None


def _walk(folder: Path, change: Callable[[str, int], None]) -> None:
    """Apply change(path, mode) to all that is ours to make read-only, folders before what they hold."""
    for top, folders, names in os.walk(folder):
        if Path(top) == folder:
            folders[:] = [name for name in folders if name not in OPEN]
        for path in [top, *(os.path.join(top, name) for name in names)]:
            if not os.path.islink(path):
                change(path, stat.S_IMODE(os.stat(path).st_mode))


def _writable(path: str, mode: int) -> None:
    if not mode & stat.S_IWUSR:
        os.chmod(path, mode | stat.S_IWUSR)


def _read_only(path: str, mode: int, gid: int) -> None:
    if gid >= 0:
        os.chown(path, -1, gid)
    readable = mode | 0o444 | (0o111 if mode & 0o100 else 0)
    if (wanted := readable & ~0o222) != mode:
        os.chmod(path, wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when the folder is ready, 2 with one sentence when it is not."""
    parser = argparse.ArgumentParser("python3 -m helpers.class_install", description="One installation for a class.")
    parser.add_argument("folder", type=Path, help="on storage that all nodes mount at the same path")
    parser.add_argument("--extra", choices=["cpu", "gpu"], default="", help="vLLM's build (default: cpu, or as before)")
    parser.add_argument("--group", default="", help="who may read it (default: everybody)")
    parser.add_argument("--model", action="append", default=[], metavar="OWNER/NAME", help="a model to fetch as well")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    try:
        install(folder, extra=options.extra, group=options.group, models=options.model)
    except ClassInstallError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror}. Mend that and run the same again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Run it again: it goes on where it stopped.", file=sys.stderr)
        return 130
    print(f"Ready: {folder}. The Open OnDemand app for it: {folder / 'ondemand'} (its README says how to go on).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
