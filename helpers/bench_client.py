"""`vllm bench serve`, many times in one process: importing vLLM takes as long as a short measurement.

    client = Client(log); client.measure(flags, key); client.close()

The process reads a line of JSON with the flags of one run, calls the function behind `vllm bench serve`, and answers
with a line of JSON: what `--save-result` would have saved. What the run prints goes to the log.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from helpers import keeper
from helpers.errors import WorkshopError

IMPORT_TIMEOUT = 300  # seconds, from a slow shared file system


class ClientError(WorkshopError):
    """A measurement that could not be made."""


class Client:
    """The process that measures; starting it returns at once, while it imports vLLM."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = keeper.python_path()
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__], env=environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                preexec_fn=lambda: keeper.prctl(keeper.SET_PDEATHSIG, signal.SIGKILL),
            )  # fmt: skip
        assert self.process.stdin and self.process.stdout  # they are pipes
        self._jobs, said = self.process.stdin, self.process.stdout
        self._answers: Queue[str | None] = Queue()
        threading.Thread(target=self._read, args=(said,), daemon=True).start()
        self._is_ready = False

    def measure(self, flags: list[str], key: str, timeout: float) -> dict[str, Any]:
        """What one run of `vllm bench serve` with these flags found.

        `key` is the server's API key. Raises ClientError when it fails, or takes longer than `timeout` seconds.
        """
        if not self._is_ready:
            self._answer(IMPORT_TIMEOUT, "vLLM was not imported")
            self._is_ready = True
        try:
            self._jobs.write(json.dumps({"flags": flags, "key": key}) + "\n")
            self._jobs.flush()
        except OSError:
            raise ClientError(f"The benchmark's process has ended; its log: {self.log}") from None
        result = self._answer(timeout, "the measurement did not end")
        if error := result.get("error"):
            raise ClientError(f"The benchmark failed: {error} Its log: {self.log}")
        return result

    def close(self) -> None:
        """Kill the process, whatever it is at."""
        self.process.kill()
        self.process.wait()

    def _read(self, said: IO[str]) -> None:
        for line in said:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self, seconds: float, otherwise: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except Empty:
            raise ClientError(f"After {seconds:.0f} s {otherwise}; the benchmark's log: {self.log}") from None
        if line is None:
            raise ClientError(f"The benchmark's process ended; its log: {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve() -> None:
    """What the process does, until its standard input is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the benchmark's own words go to the log
    from vllm.benchmarks import serve as benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm bench serve")  # type: ignore[no-untyped-call]  # has no types
    benchmark.add_cli_args(parser)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        os.environ["OPENAI_API_KEY"] = job["key"]
        try:
            result = benchmark.main(parser.parse_args(job["flags"]))
        except (Exception, SystemExit) as error:  # whatever it is, the next run may do better
            result = {"error": f"{type(error).__name__}: {error}."}
        print(json.dumps(result, default=str), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve()
