"""What every test shares: folders that are not the user's own, and one server for the whole run."""

import os
import signal
import subprocess
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import hypothesis
import pytest
from places import CLASS, OURS
from side_by_side import ONE_CLUSTER, SIDE_BY_SIDE, Pieces, room_for

hypothesis.settings.register_profile("workshop", deadline=None)  # a busy machine is no error
hypothesis.settings.load_profile("workshop")

FOLDERS = ["WORKSHOP_HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
os.environ.update({name: f"{OURS.name}/{name.lower()}" for name in FOLDERS})  # kernels and servers inherit them
SET_BY_TESTS = ["VLLM_BASE_URL", "VLLM_API_KEY", "SLURM_CONF", "WORKSHOP_SITE", "WORKSHOP_CLASS", "SERVE_CLASS"]
for name in SET_BY_TESTS:
    os.environ.pop(name, None)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would ours

ORDER = ["unit", "notebooks", "server", "browser", "labs", "slurm"]  # the fast ones first


def pytest_collection_modifyitems(items):
    """The fast ones first; side by side those of the cluster come next, which take longest."""
    order = ["unit", *sorted(ONE_CLUSTER), *ORDER] if SIDE_BY_SIDE else ORDER
    items.sort(key=lambda item: order.index(item.path.parent.name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Pieces(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with room_for(item):
        return (yield)


def pytest_terminal_summary(terminalreporter):
    """The ten slowest parts, each with its slowest test: what a run of all tests waits for. A notebook or lab is a part, or a file."""
    seconds = defaultdict(Counter)  # of a part's tests, with what they set up and clear away
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            part, _, test = report.nodeid.partition("::")
            if part.startswith(("tests/notebooks", "tests/labs")):
                part += "".join(test.partition("[")[1:])
            seconds[part][test] += report.duration
    total = sum(tests.total() for tests in seconds.values())
    if total < 60:
        return
    terminalreporter.section(f"the ten slowest of {len(seconds)} parts, in {total / 60:.1f} minutes of tests")
    for part, tests in sorted(seconds.items(), key=lambda pair: -pair[1].total())[:10]:
        test, longest = tests.most_common(1)[0]
        share = f"{tests.total() / 60:5.1f} min {tests.total() / total:4.0%}"
        terminalreporter.line(
            f"{share}  {part}: {len(tests)} tests, the slowest {test.partition('[')[0]} ({longest:.0f} s)"
        )


@pytest.fixture(scope="session")
def live_server():
    """The run's server with the small Llama: a helpers.server.Server, which `connect()` finds by itself.

    It serves a class as well, in the folder CLASS, where a test that sets WORKSHOP_CLASS is a participant.
    """
    from helpers import class_folder
    from helpers.server import start

    class_folder.prepare(CLASS, everybody=True)
    with start(quiet=True, environment={"SERVE_CLASS": str(CLASS)}) as server:
        yield server


@pytest.fixture(scope="module")  # while it lives, an event loop runs that other tests would trip over
def browser():
    """A headless Chromium, installed if need be. Make a context with `offline=True` for pages that are to need nothing."""
    from playwright.sync_api import sync_playwright

    done = subprocess.run([Path(__file__).with_name("chromium.sh")], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=done.stdout.strip(), args=["--no-sandbox"])
        yield chromium
        chromium.close()
