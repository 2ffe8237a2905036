"""Start a vLLM server on this machine, wait until it answers, and leave nothing behind when it stops.

    python -m helpers.server [--model FOLDER] [--port N] [vLLM flags]     until Ctrl-C
    server = start(); ...; server.stop()                                  from Python

The server lives no longer than the process that started it: see keeper.py.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import connections
from helpers.connections import Connection
from helpers.errors import WorkshopError
from helpers.tiny import MODEL_DIR


class ServerError(WorkshopError):
    """The server could not be started, or ended before it answered."""


@dataclass
class Server:
    """A running server and the keeper that looks after it; a context manager that stops it."""

    connection: Connection
    keeper: subprocess.Popen[str]

    def stop(self) -> None:
        """End the server; returns when no process of it is left."""
        self.keeper.terminate()
        self.keeper.wait(60)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    model: Path | str = MODEL_DIR, *, port: int | None = None, flags: Sequence[str] = (), quiet: bool = False,
    private: bool = False, environment: Mapping[str, str] | None = None,
) -> Server:  # fmt: skip
    """Start a server on loopback with a random key; returns once it has answered a completion.

    `flags` are vLLM's own and win over the defaults in keeper.FLAGS. Without a port, a free one is taken.
    A `private` server is for an experiment: `connect()` does not find it, only `client.client_for(server.connection)`.
    `environment` holds variables for vLLM.
    Raises ServerError with the cause and the mend. Ctrl-C while waiting stops what was started.
    """
    command = [sys.executable, "-m", "helpers.keeper", "--owner", str(os.getpid()), "--model", str(model)]
    command += ["--port", str(port)] if port is not None else []
    command += ["--private"] if private else []
    keeper = subprocess.Popen(
        [*command, "--", *flags], env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    said = ""
    try:
        assert keeper.stdout is not None  # it is a pipe
        for line in keeper.stdout:
            said = line.strip()
            if said.startswith("ready "):
                return Server(connections.read(said.removeprefix("ready ")), keeper)
            if not quiet and not said.startswith("failed: "):
                print(f"\r{said:<40}", end="", flush=True)
        raise ServerError(
            said.removeprefix("failed: ") or "The server's keeper ended without a word; start the server again."
        )
    except BaseException:
        keeper.terminate()
        keeper.wait(60)
        raise
    finally:
        if not quiet:
            print("\r" + " " * 40, end="\r", flush=True)


def main() -> int:
    """Runs the command. Returns 0 after Ctrl-C, 1 when the server ended by itself, 2 when it could not be started."""
    parser = argparse.ArgumentParser(description="Run a vLLM server on this machine until Ctrl-C.")
    parser.add_argument(
        "--model", default=MODEL_DIR, help="folder with config.json and weights (default: the small Llama)"
    )
    parser.add_argument("--port", type=int, help="default: a free one")
    options, flags = parser.parse_known_args()
    try:
        with start(options.model, port=options.port, flags=flags) as server:
            print(f"{server.connection.model} answers at {server.connection.base_url}; Ctrl-C stops it.")
            print(f"Key and log: {server.connection.path}")
            server.keeper.wait()
            print("The server ended by itself; its log tells why.")
            return 1
    except KeyboardInterrupt:
        return 0
    except ServerError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
