"""Folders of this run of the tests: none of them is the user's own."""

from pathlib import Path
from tempfile import TemporaryDirectory

OURS = TemporaryDirectory(prefix="workshop-tests-")
#: The class's that the run's server serves.
CLASS = Path(OURS.name) / "class"
