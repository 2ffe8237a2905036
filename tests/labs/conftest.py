"""The labs' tests use the test cluster of tests/slurm, brought up and left as it was found in the same way."""

import importlib.util
import sys
from pathlib import Path

SLURM = Path(__file__).parents[1] / "slurm"
sys.path.insert(0, str(SLURM))  # for `from testbed import ...`

_spec = importlib.util.spec_from_file_location("slurm_conftest", SLURM / "conftest.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
testbed = _module.testbed  # the fixture
