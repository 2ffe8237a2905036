"""Figures of the set-up and the start, printed and not judged:  python -m tests.benchmarks [--setup] [--slurm] [--pairs 3]

Server: `helpers.server.start` against a bare `vllm serve` with the same flags, one after the other in turns, each timed
until it answers one completion. With --setup also: requirements/install.py against the bare `pip install` of its pins.
With --slurm, as root: slurm/any-model.sbatch on the test cluster, from sbatch to its connection file, against the same
`vllm serve` typed on the node; and how long after its first answer the connection file said ready.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import keeper, server
from helpers.connections import Connection
from helpers.tiny import MODEL_DIR, MODEL_NAME

ROOT = Path(__file__).parent.parent


def ours() -> float:
    started = time.monotonic()
    with server.start(quiet=True):
        return time.monotonic() - started


def bare() -> float:
    """`vllm serve` by hand, asked every tenth of a second whether it answers."""
    port = keeper.free_port()
    command = [Path(sys.executable).parent / "vllm", "serve", MODEL_DIR, "--host", keeper.HOST, "--port", str(port)]
    connection = Connection(f"http://{keeper.HOST}:{port}/v1", MODEL_NAME, "none", "")
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--served-model-name", MODEL_NAME, *keeper.FLAGS],
        env=keeper.ENVIRONMENT | os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not keeper.answers(connection):
        time.sleep(0.1)
    elapsed = time.monotonic() - started
    process.terminate()
    process.wait()
    return elapsed


def in_a_copy(*commands: str) -> float:
    """Seconds that the commands take in a fresh copy of the project."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        started = time.monotonic()
        for command in commands:
            subprocess.run(command, shell=True, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - started


def our_setup() -> float:
    return in_a_copy(f"{sys._base_executable} requirements/install.py")


def bare_setup() -> float:
    return in_a_copy(
        f"{sys._base_executable} -m venv .venv",
        ".venv/bin/pip install -qq --no-deps torch==2.13.0+cpu -r requirements/cpu.txt",
    )


def asked(connection: Connection) -> float:
    """The moment at which the server first answers."""
    while not keeper.answers(connection):
        time.sleep(0.02)
    return time.monotonic()


def slurm(pairs: int) -> None:
    """Jobs and bare servers in turns on one node of a cluster that is up (`make cluster NODES=4`)."""
    sys.path.insert(0, str(ROOT / "tests/slurm"))
    from testbed import Cluster, until

    lags = []
    with TemporaryDirectory() as folder:
        os.environ["WORKSHOP_HOME"] = folder
        cluster = Cluster(folder)

        def job() -> float:
            started = time.monotonic()
            ours = cluster.submit("any-model", "--nodelist=node1")
            answered = asked(until("the job's port", 60, ours.connection))
            ours.ready()
            ready = time.monotonic()
            lags.append(ready - answered)
            ours.cancel()
            ours.ended()
            return ready - started

        def typed() -> float:
            command = (cluster.jobs[-1].folder / "command").read_text().split()
            command[0], port = f"{sys.prefix}/bin/vllm", command[command.index("--port") + 1]
            environment = {**os.environ, "VLLM_API_KEY": "none", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT)}
            started = time.monotonic()
            process = cluster.on_node(
                "node1", *command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            answered = asked(Connection(f"http://10.77.0.11:{port}/v1", MODEL_NAME, "none", ""))
            process.terminate()
            process.wait()
            return answered - started

        compare("job ready", job, typed, pairs)
    print("ready after the first answer: " + ", ".join(f"{lag:.2f} s" for lag in lags))


def compare(title: str, one: Callable[[], float], other: Callable[[], float], pairs: int) -> None:
    times = [(one(), other()) for _ in range(pairs)]
    for mine, theirs in times:
        print(f"  {title}: {mine:.1f} s, bare {theirs:.1f} s, ratio {mine / theirs:.2f}", flush=True)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"{title}: median {medians[0]:.1f} s, bare {medians[1]:.1f} s, ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--setup", action="store_true", help="also compare the set-up: minutes for each pair")
    parser.add_argument("--slurm", action="store_true", help="also compare a Slurm job: as root, on the test cluster")
    options = parser.parse_args()
    compare("server ready", ours, bare, options.pairs)
    if options.slurm:
        slurm(options.pairs)
    if options.setup:
        compare("set-up", our_setup, bare_setup, pairs=1)
