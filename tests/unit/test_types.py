"""The package's types are complete and agree, as mypy's strict mode sees them (pyproject.toml); `make lint` says the same."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def mypy(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_helpers_are_typed_and_a_wrong_type_would_be_seen(tmp_path):
    done = mypy()
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.py").write_text("from helpers.memory import plan\n\nplan(8, gpu='H100')\n")
    assert "[arg-type]" in mypy(tmp_path / "wrong.py").stdout
