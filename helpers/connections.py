"""Connection files: how a notebook finds a server that something else started.

Whoever runs a server (this package, a Slurm job) keeps one JSON file in `$WORKSHOP_HOME/servers` (by default
`~/.llm-serving-workshop/servers`), readable by its owner alone because it holds the API key, and removes it at the end.

A class's server is for many: started with SERVE_CLASS naming the class's folder, it keeps a second file in `servers` there,
without a key, for each participant has a key of their own (class_keys). Participants look in the folder that WORKSHOP_CLASS
names, as Open OnDemand's sessions set it (slurm/ondemand), or in the one beside their installation (class_install).
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from helpers import queue, storage

STARTING, READY = "starting", "ready"
BESIDE = Path(__file__).resolve().parents[1] / "class"  # where class_install has it


def home() -> Path:
    """The folder for connection files and server logs, the same one on every node of a cluster."""
    return Path(os.environ.get("WORKSHOP_HOME") or Path.home() / ".llm-serving-workshop")


def folders() -> list[Path]:
    """Where connection files are: one's own first, then the class's where there is one."""
    shared = class_folder()
    return [home() / "servers", *([shared / "servers"] if shared else [])]


def class_folder() -> Path | None:
    """The class's shared folder, None where there is no class."""
    if named := os.environ.get("WORKSHOP_CLASS"):
        return Path(named)
    return BESIDE if os.path.isdir(BESIDE / "servers") else None


@dataclass
class Connection:
    """One server: where it answers, with which model and key, and where its log is.

    `job_id` is the Slurm job's, None for a server started by hand; `pid` is the process on `node` that keeps it alive.
    A `private` server is an experiment's: its file lies apart, where `connect()` does not look. `file` is where it was
    read from; a class's lies not in our folder, is not ours to remove, and has no key, for everybody has their own.
    """

    base_url: str
    model: str
    api_key: str
    log: str
    node: str = ""
    job_id: str | None = None
    pid: int | None = None
    state: str = STARTING
    private: bool = False
    file: Path | None = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> Path:
        """Its file: where it was read from, or in our folder, by its name."""
        if self.file:
            return self.file
        return home() / ("experiments" if self.private else "servers") / self.file_name

    @property
    def file_name(self) -> str:
        """By node, job and port: what no two servers share."""
        port = self.base_url.split(":")[-1].split("/")[0]
        return f"{self.node}-{self.job_id or 'local'}-{port}.json"

    def write(self) -> None:
        """Write the file whole or not at all, with mode 0600. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        storage.put(self.path, self._text())

    def offer(self, shared: Path) -> Path:
        """Let a class find this server: a file in its folder without key and log. Returns its path. Raises OSError."""
        path = shared / "servers" / self.file_name
        storage.put(path, self._text(api_key="", log=""), mode=0o644)
        return path

    def _text(self, **other: str) -> str:
        fields = {name: value for name, value in asdict(self).items() if name != "file"}
        return json.dumps(fields | other, indent=1)

    @property
    def is_ours(self) -> bool:
        """False for a class's, which lies in somebody else's folder."""
        return self.path.is_relative_to(home())

    def remove(self) -> None:
        """Remove the file, if it is there and ours."""
        if self.is_ours:
            self.path.unlink(missing_ok=True)

    def is_gone(self) -> bool:
        """True when its process or its Slurm job is known to have ended; what cannot be asked is not called gone."""
        if self.job_id:
            return _job_is_over(self.job_id, self.node)
        if self.node != socket.gethostname() or self.pid is None:
            return False
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


def _job_is_over(job: str, node: str) -> bool:
    """Slurm answers, and knows no such running job. A Slurm that does not know the node is another cluster's."""
    if not queue.is_here():
        return False
    try:
        return queue.job_state(job) not in queue.RUNNING and queue.knows_node(node)
    except queue.SlurmError:
        return False


def read(path: Path | str) -> Connection:
    """The connection in a file. Raises OSError, ValueError or TypeError when it is gone or is not a connection file."""
    data = dict(json.loads(Path(path).read_text()))
    known = {each.name for each in fields(Connection)} - {"file"}
    return Connection(**{name: data[name] for name in known & data.keys()}, file=Path(path))


def read_all() -> list[Connection]:
    """Every connection file, one's own before the class's, newest first; a file that is not one of ours is passed over."""
    return [connection for folder in folders() for connection in _read_folder(folder)]


def _read_folder(folder: Path) -> list[Connection]:
    found, paths = [], []
    with suppress(OSError):  # a class's that we may not enter
        paths = list(folder.glob("*.json"))
    for path in paths:
        with suppress(OSError, ValueError, TypeError):
            found.append((path.stat().st_mtime, read(path)))
    return [connection for _, connection in sorted(found, key=lambda pair: -pair[0])]
