"""Make .venv and install the workshop's pins into it:  python3 requirements/install.py [cpu|gpu] [site] [dev]

A second run finds nothing to do and says nothing. An interrupted run is taken up where it stopped. It uses nothing but
Python and pip, so that it runs on a bare machine; it is written for old Pythons too, so that they can be told apart.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements"
VENV = ROOT / ".venv"
STAMP = VENV / "workshop.json"
TORCH = "torch==2.13.0+cpu"  # the CPU build: its name is not on PyPI, so pip finds it in its own configuration or below
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
GIB_NEEDED = {"cpu": 4, "gpu": 14, "site": 1, "dev": 1}
BESIDES = ("site", "dev")  # installed beside cpu or gpu

#: What pip prints -> what went wrong and the mend.
PIP_FAILURES = [
    (r"No space left on device|Errno 28", "The disk is full. Free some space (`df -h .` shows how much there is) and run this again: it goes on where it stopped."),
    (r"Disk quota exceeded|Errno 122", "Your disk quota is used up. Free some space, or clone the repository to scratch storage, and run this again."),
    (r"torch==2\.13\.0\+cpu", "pip found no CPU build of torch 2.13.0: not in its own configuration, not at " + TORCH_INDEX + ". Let pip reach that address, or point PIP_FIND_LINKS to a folder with the wheel."),
    (r"Could not find a version|No matching distribution|NewConnectionError|Temporary failure in name resolution|Read timed out", "pip could not reach a package index or found no such pin there. Check the network (`pip download pip` tries it) and run this again."),
]  # fmt: skip


class SetupError(Exception):
    """Its message is the whole story: one sentence and the mend."""


def check_python(version=sys.version_info[:2]):
    if not (3, 11) <= tuple(version) < (3, 14):
        others = [name for name in ("python3.13", "python3.12", "python3.11") if works(name)]
        mend = (
            "Use the one that is here: make PYTHON=" + others[0]
            if others
            else "Install Python 3.11, 3.12 or 3.13, then: make PYTHON=python3.12"
        )
        raise SetupError(f"Python 3.11 to 3.13 is needed, and this is {version[0]}.{version[1]}. {mend}")


def works(name):
    """A name on the PATH is not enough: version managers leave shims there for Pythons that are switched off."""
    return shutil.which(name) and subprocess.run([name, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


def check_processor(cpuinfo="/proc/cpuinfo"):
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        raise SetupError(
            "The servers run on Linux only. On Windows use WSL 2; on a Mac use a Linux machine or a container."
        ) from None
    if not re.search(r"^flags\s*:.*\bavx2\b", text, re.MULTILINE):
        raise SetupError(
            "vLLM on a CPU needs AVX2, which this processor lacks (x86-64 from about 2013 on has it). Use another machine."
        )


def check_disk(gib, folder=ROOT):
    free = shutil.disk_usage(str(folder)).free / 2**30
    if free < gib:
        raise SetupError(
            f"{folder} has {free:.1f} GiB free and the packages need {gib}. Free some space, or clone the repository elsewhere."
        )


def fingerprint(extra):
    """Changes with the Python and with whatever decides what `extra` installs."""
    files = [
        PINS / (extra + ".txt"),
        Path(__file__),
        PINS / "vllm-metadata" / "pyproject.toml",
        ROOT / "pyproject.toml",
    ]
    digest = hashlib.sha256(f"{sys.version}{ROOT}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp():
    try:
        return json.loads(STAMP.read_text()) if venv_works() else {}
    except (OSError, ValueError):
        return {}


def venv_works():
    """True when .venv has pip and is of the Python that runs this: `make setup PYTHON=python3.12` makes it anew."""
    python = VENV / "bin" / "python"
    question = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return python.exists() and subprocess.run([str(python), "-c", question], stderr=subprocess.DEVNULL).returncode == 0


def make_venv():
    if VENV.exists():
        if not (VENV / "pyvenv.cfg").exists() and any(VENV.iterdir()):
            raise SetupError(f"{VENV} is there and is not a virtual environment. Move it away and run this again.")
        shutil.rmtree(str(VENV))
    print("Making .venv with Python {}.{}".format(*sys.version_info[:2]), flush=True)
    python = getattr(sys, "_base_executable", sys.executable)  # not .venv's own, which has just been removed
    without_pip = [python, "-m", "venv", "--without-pip", str(VENV)]
    add_pip = [
        str(VENV / "bin" / "python"),
        "-m",
        "ensurepip",
        "--default-pip",
    ]  # by ourselves: venv swallows what it says
    for command in (without_pip, add_pip):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            shutil.rmtree(str(VENV), ignore_errors=True)
            if re.search(r"No module named '?(venv|ensurepip)", done.stdout):
                raise SetupError(
                    "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"
                )
            raise SetupError(explain(done.stdout))


def explain(output):
    for pattern, meaning in PIP_FAILURES:
        if re.search(pattern, output):
            return meaning
    return "pip failed and the reason is not one we know. Its last words: " + " | ".join(
        output.strip().splitlines()[-3:]
    )


def pip(title, packages, *arguments):
    """Run pip install with a counter, since 200 silent downloads look like a hang."""
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
    ]
    process = subprocess.Popen(
        command + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    seen, output = 0, []
    for line in process.stdout:
        output.append(line)
        if line.startswith(("Collecting", "Requirement already", "Processing", "Obtaining")):
            seen += 1
            progress("{} [{}/{}] {}".format(title, seen, packages, " ".join(line.split()[1:2])[:40]), last=False)
        elif line.startswith("Installing collected"):
            progress(f"{title}: unpacking {packages} packages, one to three minutes", last=False)
    if process.wait():
        progress("", last=True)
        return "".join(output)
    progress(f"{title}: done", last=True)
    return ""


def progress(text, last):
    """One line that rewrites itself on a terminal; in a log, every 25th step."""
    if sys.stdout.isatty():
        print("\r\033[K" + text, end="\n" if last and text else "", flush=True)
    elif last or "unpacking" in text or re.search(r"\[\d*(25|50|75|00)/", text):
        print(text, flush=True)


def install(extra):
    pins = PINS / (extra + ".txt")
    count = len(pins.read_text().splitlines())
    failure = ""
    if extra == "cpu":
        failure = pip("torch for CPUs", 1, TORCH)
        if "No matching distribution" in failure:
            failure = pip("torch for CPUs", 1, TORCH, "--extra-index-url", TORCH_INDEX)
    failure = failure or pip("Packages for " + extra, count, "-r", str(pins))
    if not failure and extra not in BESIDES:
        ours = ["-e", str(ROOT)] + ([str(PINS / "vllm-metadata")] if extra == "cpu" else [])
        failure = pip("The workshop", len(ours) // 2 + 1, "--no-build-isolation", *ours)
    if failure:
        raise SetupError(explain(failure))


def setup(wanted):
    """`wanted`: names of pin files; without cpu or gpu, the one that .venv has, else cpu."""
    check_python()
    have = read_stamp()
    base = next((extra for extra in ("cpu", "gpu") if extra in wanted), "gpu" if "gpu" in have else "cpu")
    extras = [base] + [extra for extra in BESIDES if extra in wanted]
    missing = [extra for extra in extras if have.get(extra) != fingerprint(extra)]
    if not missing:
        return
    if base == "cpu":
        check_processor()
    check_disk(sum(GIB_NEEDED[extra] for extra in missing))
    other = {"cpu": "gpu", "gpu": "cpu"}[base]
    if other in have or not venv_works():
        make_venv()
        have, missing = {}, extras
    for extra in missing:
        have.pop(extra, None)
        STAMP.write_text(json.dumps(have))
        install(extra)
        have[extra] = fingerprint(extra)
        STAMP.write_text(json.dumps(have))


def main(arguments):
    unknown = set(arguments) - set(GIB_NEEDED)
    try:
        if unknown:
            raise SetupError(
                "There is no extra called {}. Choose cpu or gpu, site for `make site`, dev for the tests.".format(
                    ", ".join(sorted(unknown))
                )
            )
        setup(arguments)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(explain(f"Errno {error.errno}: {error.strerror} {error.filename}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Run it again: it goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))
