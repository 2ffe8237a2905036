"""The server of one row of a matrix: started as its row says, waited for with a bound, ended with every process of it.

A row on several nodes gets a vLLM process for each, all on this machine, as the native launcher starts them on as many.
"""

import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from helpers import doctor, keeper
from helpers.bench_matrix import Row
from helpers.connections import Connection
from helpers.errors import WorkshopError
from helpers.log_lines import read_files
from helpers.tiny import MODEL_DIR, MODEL_NAME

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
#: vLLM is sure to have ended by then, or is made to.
PATIENCE = 10
_PORTS: set[int] = set()


class RowError(WorkshopError):
    """A row whose server did not get ready, or died."""


@dataclass
class RowServer:
    """A row's server, from its start on. `folder` has a log for each of its processes, rank-N.log.

    `began` is as time.monotonic(), `ready_after` in seconds, NaN until it is ready.
    """

    row: Row
    folder: Path
    model: Path
    connection: Connection
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ready_after: float = math.nan

    @property
    def base_url(self) -> str:
        """Without the /v1 at its end, as `vllm bench serve` wants it."""
        return self.connection.base_url.removesuffix("/v1")

    @property
    def log(self) -> str:
        """What its first process has written."""
        return (self.folder / "rank-0.log").read_text(errors="replace")

    @property
    def ended(self) -> int | None:
        """The exit status of a process of it that has ended; None while all are there."""
        return next((status for process in self.processes if (status := process.poll()) is not None), None)

    def check(self) -> None:
        """Raises RowError with the doctor's finding when the server has ended."""
        if self.ended is not None:
            said = doctor.diagnose("".join(path.read_text(errors="replace") for path in self._logs()), self.ended)
            raise RowError(f"The server of row {self.row.name} ended: {said} Log: {self.folder}")

    def is_ready(self) -> bool:
        """Whether it answers a completion. Raises what check() raises."""
        self.check()
        if not keeper.answers(self.connection):
            return False
        self.ready_after = time.monotonic() - self.began
        return True

    def not_ready(self, seconds: float) -> RowError:
        """Why it is not ready after so many seconds, as far as its logs tell."""
        ranks = read_files(self._logs())[0]
        diagnosis = doctor.judge([line for lines in ranks.values() for line in lines])
        if not diagnosis.known:
            diagnosis = doctor.judge_start(ranks, doctor.silence(self.folder))
        return RowError(
            f"The server of row {self.row.name} was not ready after {seconds:.0f} s: {diagnosis} Log: {self.folder}"
        )

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("rank-*.log"), key=doctor.rank_of)


def launch(row: Row, folder: Path, scratch: Path) -> RowServer:
    """Start a row's server and return at once. `folder` is for its logs, `scratch` for caches and sockets.

    Raises MatrixError when there is no such model, OSError where a process cannot be started.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = row.folder or _model_without_weights(row, scratch / row.fingerprint / "model")
    port = _free_port()
    connection = Connection(
        base_url=f"http://{keeper.HOST}:{port}/v1",
        model=MODEL_NAME if row.folder == MODEL_DIR else Path(row.model).name,
        api_key=secrets.token_urlsafe(24),
        log=str(folder / "rank-0.log"),
        private=True,
    )
    server = RowServer(row, folder, model, connection)
    try:
        master = _free_port() if row.nodes > 1 else None
        for rank in range(row.nodes):
            server.processes.append(_process(server, rank, port, master, scratch))
    except BaseException:
        stop([server])
        raise
    return server


def stop(servers: list[RowServer]) -> None:
    """End these servers; returns when no process of theirs is left."""
    leaders = [process for server in servers for process in server.processes]
    tree = {child for leader in leaders for child in _family(leader.pid)}
    for leader in leaders:
        leader.terminate()
    _, alive = psutil.wait_procs(tree, timeout=PATIENCE)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for leader in leaders:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)  # what was born meanwhile; each leader has a group of its own
        leader.wait()
    psutil.wait_procs(alive, timeout=PATIENCE)


def command(row: Row, model: Path, name: str, port: int, rank: int = 0, master_port: int | None = None) -> list[str]:
    """The vLLM command of one of a row's processes."""
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", name]
    words += ["--host", keeper.HOST, "--port", str(port), "--middleware", "helpers.guard.RequireKey"]
    for flag, size in (("tensor", row.tp), ("pipeline", row.pp), ("data", row.dp)):
        words += [f"--{flag}-parallel-size", str(size)]
    if row.nodes > 1:
        words += ["--nnodes", str(row.nodes), "--node-rank", str(rank)]
        words += ["--master-addr", keeper.HOST, "--master-port", str(master_port)]
        words += ["--headless"] if rank else []
    words += [] if row.folder else ["--load-format", "dummy"]
    return words + list(row.flags)


def environment(row: Row, rank: int, scratch: Path) -> dict[str, str]:
    """What a row's process gets beside our own environment: caches of its own, its GPUs or cores, the row's variables.

    Rows compile at the same time, and two that share vLLM's cache would break one another.
    """
    cache = scratch / row.fingerprint / f"cache-{rank}"
    given = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": keeper.HOST}
    given |= {"VLLM_CACHE_ROOT": str(cache), "TMPDIR": str(scratch)}
    each = row.ranks // row.nodes
    if row.gpus:
        visible = (
            os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        )
        mine = row.gpus[rank * each : (rank + 1) * each]
        given["CUDA_VISIBLE_DEVICES"] = ",".join(visible[gpu] if visible else str(gpu) for gpu in mine)
    else:
        given["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        if row.ranks > 1:  # a core for each rank, named by hand
            given["VLLM_CPU_OMP_THREADS_BIND"] = keeper.a_core_each(each, before=rank * each)
        else:
            given |= keeper.ONE_RANK
    return given | row.env


def _process(server: RowServer, rank: int, port: int, master: int | None, scratch: Path) -> subprocess.Popen[bytes]:
    words = command(server.row, server.model, server.connection.model, port, rank, master)
    variables = os.environ | environment(server.row, rank, scratch) | {"VLLM_API_KEY": server.connection.api_key}
    variables["PYTHONPATH"] = keeper.python_path()
    with (server.folder / f"rank-{rank}.log").open("w") as log:
        return subprocess.Popen(
            words, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: keeper.prctl(keeper.SET_PDEATHSIG, signal.SIGTERM),
        )  # fmt: skip


def _model_without_weights(row: Row, folder: Path) -> Path:
    """A folder vLLM can serve with --load-format dummy: the config.json, and the small Llama's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(row.config_fields))
    for name in TOKENIZER:
        shutil.copy(MODEL_DIR / name, folder)
    return folder


def _family(pid: int) -> set[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return {leader, *leader.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _free_port() -> int:
    """One that no server of ours has been given: those that start together have not opened theirs yet."""
    port = keeper.free_port()
    while port in _PORTS:
        port = keeper.free_port()
    _PORTS.add(port)
    return port
