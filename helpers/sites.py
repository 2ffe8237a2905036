"""What a cluster is called and how it is set up: slurm/sites/NAME.env, read as the jobs read it."""

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.deployments import FOLDER, ROOT, Deployment, asked_of_sbatch
from helpers.errors import WorkshopError
from helpers.hardware import HardwareError, get_gpu

SITES = FOLDER / "sites"
RUNTIMES = ("venv", "module", "apptainer")


class SiteError(WorkshopError):
    """A site profile that is not there, or that bash cannot read."""


@dataclass(frozen=True)
class Site:
    """One profile: its variables (SITE_..., and SMALL where a profile sets it) as bash leaves them."""

    name: str
    path: Path
    variables: dict[str, str]

    def __getitem__(self, name: str) -> str:
        """site["MODELS"] is the profile's SITE_MODELS, empty where it sets none."""
        return self.variables.get(f"SITE_{name}", "")

    @property
    def is_small(self) -> bool:
        """Whether every deployment serves the small model here, as on the test cluster."""
        return self.variables.get("SMALL", "0") not in ("", "0")

    @property
    def runtime(self) -> str:
        """Where vLLM comes from: venv, module or apptainer."""
        return self["RUNTIME"] or "venv"

    @property
    def venv(self) -> Path:
        """The virtual environment that serves, for the runtime venv."""
        return Path(self["VENV"] or ROOT / ".venv")

    def gpu_options(self, gpu: str) -> list[str]:
        """Options of sbatch for GPUs of a kind: SITE_SBATCH_H100 and so on; a kind is found by its other names too."""
        names = [gpu]
        with contextlib.suppress(HardwareError):
            names.append(get_gpu(gpu).name)
        keys = (f"SBATCH_{re.sub(r'[^A-Z0-9]', '_', name.upper())}" for name in names if name)
        return shlex.split(next((self[key] for key in keys if self[key]), ""))


def names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in SITES.glob("*.env"))


def chosen() -> str:
    """The profile a job would take: WORKSHOP_SITE, else here.env where you made one, else generic."""
    return os.environ.get("WORKSHOP_SITE") or ("here" if (SITES / "here.env").is_file() else "generic")


def read_site(name: str | None = None, environment: Mapping[str, str] | None = None) -> Site:
    """The Site of a name, by default the chosen one. Bash reads the file in `environment`, by default this process's.

    Raises SiteError for a profile that is not there, or that bash refuses.
    """
    name = name or chosen()
    path = SITES / f"{name}.env"
    if not path.is_file():
        raise SiteError(f"There is no site profile {name!r}: set WORKSHOP_SITE to one of {', '.join(names())}.")
    before = dict(os.environ if environment is None else environment)
    before = {key: value for key, value in before.items() if not key.startswith("SITE_") and key != "BASH_ENV"}
    before["WORKSHOP_ROOT"] = str(ROOT)
    script = 'set -a -e; source "$1"; env -0'
    done = subprocess.run(["bash", "--noprofile", "--norc", "-c", script, "bash", str(path)],
                          env=before, capture_output=True, text=True, timeout=30)  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise SiteError(f"bash cannot read {path}: {said[-1].removeprefix(f'{path}: ')}. Correct that line.")
    after = dict(entry.partition("=")[::2] for entry in done.stdout.split("\0") if "=" in entry)
    return Site(name, path, {key: value for key, value in after.items() if key.startswith("SITE_") or key == "SMALL"})


def sbatch_options(site: Site, deployment: Deployment) -> list[str]:
    """What the site adds to `sbatch`: account, partition, reservation, and what its GPUs of this kind ask for."""
    common = [f"--{option}={site[option.upper()]}" for option in ("account", "partition", "reservation")
              if site[option.upper()]]  # fmt: skip
    kind = asked_of_sbatch([] if site.is_small else site.gpu_options(deployment.gpu))
    kept = [option for option in common if option.partition("=")[0] not in kind]
    return kept + [f"{option}={value}" if value else option for option, value in kind.items()]
