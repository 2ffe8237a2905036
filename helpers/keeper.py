"""The process that keeps one vLLM server: it starts vLLM, watches it, and leaves nothing behind.

It ends vLLM and every child of it when it is told to stop (SIGTERM, Ctrl-C), when its owner is gone (a notebook kernel
that crashed), or when vLLM ends; then it removes the connection file. Should the keeper itself be killed, the operating
system tells vLLM to stop. `server.start` runs it and reads what it prints: phases, then `ready FILE` or `failed: REASON`.
"""

import argparse
import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import httpx
import psutil

from helpers import doctor, storage
from helpers.connections import READY, Connection, home
from helpers.tiny import MODEL_DIR, MODEL_NAME

HOST = "127.0.0.1"
#: Eager mode: compiling would add half a minute to the start and saves little on a model this small.
FLAGS = ["--max-model-len", "2048", "--enforce-eager"]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB: 262,144 tokens of the small Llama
}
#: A server of one rank on a CPU. Two threads write the small Llama's tokens at half the speed of one on two cores. In its
#: own process the rank would be waited for with sched_yield, after which Linux 6.18 may leave others waiting for seconds,
#: /metrics and clients among them; and tied to a core, vLLM's default, all servers of a machine would share that one.
ONE_RANK = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
PHASES = [  # what the log says -> what we say; the last one found holds
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("Starting to load model", "loading weights"),
    ("KV cache size", "warming up"),
    ("Starting vLLM server", "opening the port"),
]
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LOGS_KEPT = 20
OUR_LOG = re.compile(r"\d{8}-\d{6}-\d+\.log")
ROOT = Path(__file__).resolve().parents[1]


def prctl(option: int, value: int) -> None:
    """The system call of that name, for this process: SET_PDEATHSIG or SET_CHILD_SUBREAPER."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def port_is_free(port: int) -> bool:
    """Whether a server could open this port of HOST now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of HOST that nobody has open, until somebody takes it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def refuse(reason: str) -> NoReturn:
    """Tell whoever started us why there is no server, and exit with status 1."""
    print(f"failed: {reason}", flush=True)
    sys.exit(1)


def _changed(path: Path) -> float:
    """When a file was written last; 0 for one that a server started beside us has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def new_log(port: int) -> Path:
    """An empty log for this server, readable by its owner alone; the oldest of many are removed."""
    folder = home() / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ours = [path for path in folder.glob("*.log") if OUR_LOG.match(path.name)]  # Slurm jobs keep theirs there too
    for old in sorted(ours, key=_changed)[: -LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
    path.touch(mode=0o600)
    return path


def a_core_each(ranks: int, before: int = 0) -> str:
    """VLLM_CPU_OMP_THREADS_BIND for so many ranks on a CPU, after `before` others; with too few cores they take turns."""
    cores = sorted(os.sched_getaffinity(0))
    return "|".join(str(cores[(before + rank) % len(cores)]) for rank in range(ranks))


def python_path() -> str:
    """PYTHONPATH for processes that are to find this package, the guard above all, wherever they run."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def launch(connection: Connection, model: str, port: int, flags: list[str], scratch: str) -> subprocess.Popen[bytes]:
    """Start vLLM for this connection, in `scratch` for its temporary files, and return at once."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", HOST, "--port", str(port)]
    command += ["--served-model-name", connection.model, "--middleware", "helpers.guard.RequireKey", *FLAGS, *flags]
    environment = {**ENVIRONMENT, **ONE_RANK, **os.environ, "VLLM_API_KEY": connection.api_key, "TMPDIR": scratch}
    environment["PYTHONPATH"] = python_path()
    if connection.private:
        environment.pop("SERVE_CLASS", None)
    with open(connection.log, "w") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: prctl(SET_PDEATHSIG, signal.SIGTERM),
        )  # fmt: skip


def answers(connection: Connection) -> bool:
    """One token for a short prompt: the only sign of readiness that means what it says."""
    try:
        reply = httpx.post(
            f"{connection.base_url}/completions",
            headers={"Authorization": f"Bearer {connection.api_key}"},
            json={"model": connection.model, "prompt": "Hello", "max_tokens": 1},
            timeout=30,
            trust_env=False,  # a proxy cannot reach our loopback
        )
    except httpx.TransportError:
        return False
    return reply.status_code == 200


def owner_is_gone(owner: psutil.Process | None) -> bool:
    """Whether the process that a server belongs to has ended; never for a server without one."""
    try:
        return owner is not None and (not owner.is_running() or owner.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_ready(vllm: subprocess.Popen[bytes], connection: Connection, owner: psutil.Process | None) -> None:
    """Returns when the server answers; prints the phases on the way; exits with the reason when vLLM ends first."""
    started, said = time.monotonic(), ""
    while not answers(connection):
        log = Path(connection.log).read_text(errors="replace")
        if vllm.poll() is not None:
            refuse(f"The server stopped: {doctor.diagnose(log, vllm.returncode)} Log: {connection.log}")
        if owner_is_gone(owner):
            sys.exit(1)
        phase = next((words for marker, words in reversed(PHASES) if marker in log), "importing vLLM")
        line = f"{phase} ({time.monotonic() - started:.0f} s)"
        if line != said:
            print(said := line, flush=True)
        time.sleep(0.1)


@contextmanager
def nothing_left_behind(connection: Connection) -> Iterator[list[Path]]:
    """Whatever ends the block: first ask our children to stop, then kill what is left, then remove the file.

    Yields a list for other files to remove.
    """
    offered: list[Path] = []
    try:
        yield offered
    finally:
        for stop_signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(stop_signal, signal.SIG_IGN)
        for path in offered:
            path.unlink(missing_ok=True)
        children = psutil.Process().children(recursive=True)
        for child in psutil.Process().children():
            child.terminate()
        _, alive = psutil.wait_procs(children, timeout=10)
        for child in {*alive, *psutil.Process().children(recursive=True)}:  # orphans come to us: we are their subreaper
            child.kill()
        connection.remove()


def offer(connection: Connection, shared: Path) -> Path:
    """Write the file by which a class finds this server; exits with the reason when that fails."""
    try:
        return connection.offer(shared)
    except OSError as error:
        refuse(storage.why(error, shared / "servers"))


def keep(model: str, port: int | None, flags: list[str], owner: psutil.Process | None, private: bool = False) -> None:
    """Serve the model in a folder until vLLM or its owner ends; exits with the reason when it cannot.

    `port` None: a free one. A `private` server is not found by connect(), and not offered to a class.
    """
    if not (Path(model) / "config.json").is_file():
        refuse(f"No model in {model}: it holds no config.json. Name the folder that does.")
    if port is not None and not port_is_free(port):
        refuse(f"Port {port} is taken by another program. Leave the port out to get a free one, or name another.")
    shared = os.environ.get("SERVE_CLASS")
    if shared and not (Path(shared) / "keys").is_dir():
        refuse(f"{shared} is no class's folder: python -m helpers.classroom open {shared}, or unset SERVE_CLASS.")
    port = port or free_port()
    name = MODEL_NAME if Path(model).resolve() == MODEL_DIR else Path(model).resolve().name
    connection = Connection(
        base_url=f"http://{HOST}:{port}/v1", model=name, api_key=secrets.token_urlsafe(24), log=str(new_log(port)),
        node=socket.gethostname(), pid=os.getpid(), private=private,
    )  # fmt: skip
    with (
        TemporaryDirectory(prefix="vllm-") as scratch,
        nothing_left_behind(connection) as offered,
    ):  # vLLM's sockets go there
        connection.write()
        vllm = launch(connection, model, port, flags, scratch)
        wait_until_ready(vllm, connection, owner)
        connection.state = READY
        connection.write()
        if shared and not private:
            offered.append(offer(connection, Path(shared)))
        print(f"ready {connection.path}", flush=True)
        while vllm.poll() is None and not owner_is_gone(owner):
            time.sleep(0.2)


def main() -> None:
    """Runs the command, whose flags are its own; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--owner", type=int, help="end when this process ends")
    parser.add_argument("--private", action="store_true", help="not to be found by connect()")
    parser.add_argument("flags", nargs="*", help="vLLM's own, after --")
    options = parser.parse_args()
    for stop_signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(stop_signal, lambda *_: sys.exit(0))
    prctl(SET_CHILD_SUBREAPER, 1)
    try:
        keep(
            options.model,
            options.port,
            options.flags,
            psutil.Process(options.owner) if options.owner else None,
            options.private,
        )
    except BrokenPipeError:  # whoever started us is gone: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        refuse(
            f"{home()} cannot be written ({error.strerror}). Free some space, or set WORKSHOP_HOME to another folder."
        )


if __name__ == "__main__":
    main()
