"""`make test JOBS=2` runs two tests side by side (pytest-xdist): what stays together, who yields, and what is alone while it runs."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import places
import pytest
from xdist.scheduler import LoadScopeScheduling

ONE_CLUSTER = {"labs", "slurm"}
YIELDING = 15  # how nice the cluster's tests are to those beside them
#: Notebooks that compare times to a few per cent, or show what a server does from one step to the next.
ALONE = ("02_kv_cache", "03_online_inference", "08b_more_optimizations")
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ


class Pieces(LoadScopeScheduling):
    """All that needs the cluster is one piece; a notebook is one, and every other file of tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = Path(file).parent.name
        return "cluster" if folder in ONE_CLUSTER else nodeid if folder == "notebooks" else file


@contextmanager
def room_for(test: pytest.Item) -> Iterator[None]:
    """While a notebook of ALONE runs, or waits for its turn, the other process begins no test."""
    if not SIDE_BY_SIDE:
        yield
        return
    alone = test.name.startswith("test_outputs") and any(name in test.name for name in ALONE)
    if os.geteuid() == 0:  # who may take it back
        os.setpriority(os.PRIO_PROCESS, 0, YIELDING if test.path.parent.name in ONE_CLUSTER else 0)
    with open(__file__) as door, open(places.__file__) as room:  # any two files that both processes see
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
