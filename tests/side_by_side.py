"""`make test` runs two tests side by side (pytest-xdist): what stays together, and what is alone while it runs."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import places
from xdist.scheduler import LoadScopeScheduling

ONE_CLUSTER = {"labs", "slurm"}
#: Tests that compare times to within a few per cent.
ALONE = {"test_outputs_are_those_committed_and_every_solution_is_right[08b_more_optimizations]"}
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ


class Pieces(LoadScopeScheduling):
    """All that needs the cluster is one piece; a notebook is one, and every other file of tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = Path(file).parent.name
        return "cluster" if folder in ONE_CLUSTER else nodeid if folder == "notebooks" else file


@contextmanager
def room_for(name: str) -> Iterator[None]:
    """While a test of ALONE runs, or waits for its turn, the other process begins none."""
    if not SIDE_BY_SIDE:
        yield
        return
    with open(__file__) as door, open(places.__file__) as room:  # any two files that both processes see
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if name in ALONE else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
