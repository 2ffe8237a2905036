"""Where results are kept: a folder with one file a machine, JSON lines that are only ever added to.

The first line of a file is the machine; then `server` (a start: row, flags, what its log said), `cell` (a measurement)
and `failure` lines. A run that is stopped at any moment loses at most the measurement it was at, and a run on another
machine, or with another vLLM, writes to another file.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from time import strftime
from typing import Any

from helpers.bench_matrix import Cell, Row, described
from helpers.errors import WorkshopError


class StoreError(WorkshopError):
    """Results that cannot be read or written."""


@dataclass
class Results:
    """What one file holds: the machine's facts, and its server, cell and failure lines in the order they were written."""

    path: Path
    machine: dict[str, Any]
    servers: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def server_of(self, fingerprint: str) -> dict[str, Any]:
        """The last start of a row's server. Raises StopIteration for a row that was never started."""
        return next(server for server in reversed(self.servers) if server["fingerprint"] == fingerprint)


class Store:
    """The file of one machine in a folder of results; both are made when something is first kept.

    Its methods raise StoreError when the file cannot be read or written.
    """

    def __init__(self, folder: str | Path, machine: dict[str, Any]):
        self.folder, self.machine = Path(folder), machine
        self.path = self.folder / f"{machine['name']}-{machine['id']}.jsonl"

    def logs(self, row: Row) -> Path:
        """The folder for a row's logs, which are not results and may be thrown away."""
        return self.folder / "logs" / str(self.machine["id"]) / re.sub(r"\W+", "-", f"{row.name}-{row.fingerprint}")

    def done(self) -> set[tuple[str, Cell]]:
        """(fingerprint, cell) of all that has been measured on this machine."""
        cells = read(self.path).cells if self.path.exists() else []
        return {(cell["fingerprint"], cell_of(cell)) for cell in cells}

    def others(self) -> list[str]:
        """Names of the files of other machines in the folder."""
        return sorted(path.name for path in self.folder.glob("*.jsonl") if path != self.path)

    def starts_of(self, row: Row) -> int:
        """How often this row's server has got ready."""
        servers = read(self.path).servers if self.path.exists() else []
        return sum(server["fingerprint"] == row.fingerprint for server in servers)

    def keep_server(self, row: Row, **what: Any) -> None:
        """Add a start of a row's server, and `what` is known of it."""
        self._keep("server", described(row) | what)

    def keep_cell(self, row: Row, cell: Cell, **what: Any) -> None:
        """Add a measurement: the load, and `what` was found."""
        load = {name: getattr(cell, name) for name in Cell.__dataclass_fields__}
        self._keep("cell", {"row": row.name, "fingerprint": row.fingerprint, **load, **what})

    def keep_failure(self, row: Row, said: str) -> None:
        """Add that a row's server or measurement failed, and why."""
        self._keep("failure", {"row": row.name, "fingerprint": row.fingerprint, "said": said})

    def _keep(self, kind: str, what: dict[str, Any]) -> None:
        """Add a line, and the machine's before the first one; it is on the disk when this returns."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            whole = new or self.path.read_bytes().endswith(b"\n")  # or else the last line was cut off
            with self.path.open("a") as file:
                lines = [{"kind": "machine", **self.machine}] if new else []
                lines.append({"kind": kind, "date": strftime("%Y-%m-%d %H:%M:%S"), **what})
                file.write(("" if whole else "\n") + "".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written ({error.strerror}); free some space or name another --out."
            ) from None


def cell_of(line: dict[str, Any]) -> Cell:
    """The load of a `cell` line."""
    return Cell(**{name: line[name] for name in Cell.__dataclass_fields__})


def read(path: Path) -> Results:
    """One file of results. A line cut off when a run was killed is passed over. Raises StoreError for another kind of file."""
    try:
        lines = [parsed for line in path.read_text().splitlines() if (parsed := _parsed(line))]
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}).") from None
    if not lines or lines[0].get("kind") != "machine":
        raise StoreError(f"{path} is no file of results: its first line does not name a machine.")
    kinds = {kind: [line for line in lines if line.get("kind") == kind] for kind in ("server", "cell", "failure")}
    return Results(path, lines[0], kinds["server"], kinds["cell"], kinds["failure"])


def read_all(folder: str | Path) -> list[Results]:
    """The results of every machine in a folder (or of one file), by file name.

    Raises StoreError when there are none, or a file is none of results.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    if not paths:
        raise StoreError(
            f"No results in {folder}: `python -m helpers.bench run MATRIX.toml --out {folder}` makes some."
        )
    return [read(path) for path in paths]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
