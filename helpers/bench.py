"""Measure servers against each other: layouts, flags, environments, by vLLM's own benchmark.

    python -m helpers.bench run MATRIX.toml --out DIR       measure what is not yet in DIR; helpers/bench_matrix.py shows a matrix
    python -m helpers.bench report DIR [--pictures FOLDER]  tables of what is there, and pictures
    python -m helpers.bench page DIR REPORT.html            one page with pictures, and which server to choose

A run that was stopped goes on where it was. Results of another machine, or of another vLLM, stay apart.
"""

import argparse
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep, strftime
from typing import Any

from openai import OpenAI

from helpers import bench_machine, bench_page, bench_report, bench_server
from helpers.bench_checks import placed, refusals
from helpers.bench_client import Client, ClientError
from helpers.bench_log import figures
from helpers.bench_matrix import Cell, Matrix, MatrixError, Row, read
from helpers.bench_page import Limits
from helpers.bench_server import RowError, RowServer
from helpers.bench_store import Store
from helpers.client import client_for
from helpers.errors import WorkshopError
from helpers.keeper import SET_CHILD_SUBREAPER, prctl
from helpers.metrics import Snapshot, snapshot

#: What is kept of a result of `vllm bench serve`.
KEPT = (
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
    "output_throughput", "total_token_throughput",
)  # fmt: skip
TIMES = [f"{how}_{what}_ms" for what in ("ttft", "tpot", "itl", "e2el") for how in ("mean", "median", "p99")]


@dataclass(frozen=True)
class Start:
    """Servers that are up at the same time, and their measurements in the order in which they are made."""

    rows: tuple[Row, ...]
    cells: tuple[tuple[Row, Cell], ...]


def starts(matrix: Matrix, done: set[tuple[str, Cell]]) -> Iterator[Start]:
    """What is left to do, start after start, in the matrix' order; `done` holds (fingerprint, cell)."""
    left = [(row, cell) for row in matrix.rows for cell in row.cells() if (row.fingerprint, cell) not in done]
    if matrix.order == "together":
        groups = [sorted(left, key=lambda pair: (pair[1].repeat, *pair[1].load))]  # stable: rows stay in their order
    elif matrix.order == "alternate":
        repeats = sorted({cell.repeat for _, cell in left})
        groups = [[(r, c) for r, c in left if r is row and c.repeat == n] for n in repeats for row in matrix.rows]
    else:
        groups = [[(r, c) for r, c in left if r is row] for row in matrix.rows]
    for group in filter(None, groups):
        yield Start(tuple(dict.fromkeys(row for row, _ in group)), tuple(group))


def run(matrix: Matrix, folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Measure what of the matrix is not yet in the folder. Returns a sentence for each row that failed.

    Raises MatrixError, before anything is started, when a row cannot run here.
    """
    machine = bench_machine.facts()
    matrix = replace(matrix, rows=tuple(_on_gpus(row, machine) for row in matrix.rows))
    if said := refusals(matrix, machine):
        raise MatrixError("\n".join(said))
    store = Store(folder, machine)
    left = list(starts(matrix, store.done()))
    say(f"{matrix.title}: {sum(len(start.cells) for start in left)} measurements left, results in {store.path}")
    if others := store.others():
        say(f"beside it, and not compared with it: results of other machines or versions, {', '.join(others)}")
    failures: list[str] = []
    if not left:
        return failures
    prctl(SET_CHILD_SUBREAPER, 1)  # a worker whose parent died comes to us, and we end it
    with ExitStack() as stack:
        client = Client(store.folder / "logs" / machine["id"] / "client.log")
        stack.callback(client.close)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        for start in left:
            failures += _measure(start, matrix, store, client, scratch, say)
    return failures


def _on_gpus(row: Row, machine: dict[str, Any]) -> Row:
    return replace(row, gpus=placed(row, machine))


def _measure(
    start: Start, matrix: Matrix, store: Store, client: Client, scratch: Path, say: Callable[[str], None]
) -> list[str]:
    """One start: all servers up, their measurements, all servers down. Returns what failed."""
    failures: dict[Row, str] = {}
    servers: list[RowServer] = []

    def fail(row: Row, error: WorkshopError) -> None:
        failures[row] = str(error)
        store.keep_failure(row, str(error))
        say(f"{row.name}: {error}")

    try:
        for row in start.rows:
            say(f"{row.name}: starting {row.layout} {' '.join(row.flags)}")
            servers.append(bench_server.launch(row, store.logs(row), scratch))
        for server in _ready(servers, matrix.ready_timeout, fail):
            say(f"{server.row.name}: ready after {server.ready_after:.0f} s")
            beside = [row.name for row in start.rows if row is not server.row]
            store.keep_server(server.row, order=matrix.order, beside=beside, ready_s=round(server.ready_after, 1),
                              start=store.starts_of(server.row) + 1, log=figures(server.log))  # fmt: skip
        by_row = {server.row: server for server in servers}
        for row, cell in start.cells:
            if row in failures:
                continue
            try:
                found = measure(by_row[row], cell, client, matrix.cell_timeout)
            except WorkshopError as error:
                fail(row, error)
                continue
            store.keep_cell(row, cell, start=store.starts_of(row), **found)
            say(f"{row.name}: {_told(cell, found)}")
    finally:
        bench_server.stop(servers)
    return list(failures.values())


def _ready(servers: list[RowServer], seconds: float, fail: Callable[[Row, WorkshopError], None]) -> Iterator[RowServer]:
    """Each server when it has got ready; `fail` is told of those that end first, or take longer than so many seconds."""
    waiting, deadline = list(servers), monotonic() + seconds
    while waiting:
        for server in list(waiting):
            try:
                if not server.is_ready():
                    if monotonic() < deadline:
                        continue
                    raise server.not_ready(seconds)
                waiting.remove(server)
                yield server
            except RowError as error:
                waiting.remove(server)
                bench_server.stop([server])
                fail(server.row, error)
        sleep(0.2)


def measure(server: RowServer, cell: Cell, client: Client, timeout: float = 900) -> dict[str, Any]:
    """One measurement: what `vllm bench serve` found, and what the server's metrics say of prefix hits and preemptions.

    Raises RowError when the server has ended, ClientError when the benchmark fails or takes longer than so many seconds.
    """
    server.check()
    asking = client_for(server.connection)
    before = _counters(asking)
    try:
        found = client.measure(bench_flags(server, cell), server.connection.api_key, timeout)
    except ClientError:
        server.check()  # when that is the reason, the doctor knows more
        raise
    if not found.get("completed"):
        server.check()
        raise ClientError(f"All requests of row {server.row.name} failed; the server's log: {server.folder}")
    return kept(found, before, _counters(asking))


def kept(found: dict[str, Any], before: Snapshot | None, after: Snapshot | None) -> dict[str, Any]:
    """What of a benchmark's result is kept, rounded to six digits: tokens, tokens/s and requests/s; times in ms.

    `before` and `after` are the server's metrics, for the tokens found in its prefix cache and its preemptions meanwhile.
    """
    numbers = {name: found[name] for name in (*KEPT, *TIMES) if isinstance(found.get(name), int | float)}
    rounded = {name: number if isinstance(number, int) else float(f"{number:.6g}") for name, number in numbers.items()}
    if before and after:
        rounded["prefix_hits"] = after.prefix_hits - before.prefix_hits
        rounded["preemptions"] = after.preemptions - before.preemptions
    return rounded


def _counters(client: OpenAI) -> Snapshot | None:
    """The server's metrics; None where they cannot be had, which is no reason to lose a measurement."""
    try:
        return snapshot(client)
    except WorkshopError:
        return None


def bench_flags(server: RowServer, cell: Cell) -> list[str]:
    """The flags of `vllm bench serve` for a cell. Each has prompts of its own, so that no prefix cache knows them."""
    seed = zlib.crc32(repr((cell.repeat, *cell.load)).encode()) % 1_000_003
    flags = {
        "backend": "openai", "base-url": server.base_url, "model": server.connection.model, "tokenizer": server.model,
        "dataset-name": "random", "random-input-len": cell.input_len, "random-output-len": cell.output_len,
        "num-prompts": cell.prompts, "max-concurrency": cell.concurrency, "seed": seed,
        "percentile-metrics": "ttft,tpot,itl,e2el", "metric-percentiles": "50,99", "ready-check-timeout-sec": 0,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))] + [
        "--ignore-eos",
        "--disable-tqdm",
    ]


def _told(cell: Cell, found: dict[str, Any]) -> str:
    load = f"{cell.concurrency} at once, {cell.input_len} in, {cell.output_len} out, repeat {cell.repeat}"
    times = f"TTFT {found['median_ttft_ms']:.0f} ms, TPOT {found['median_tpot_ms']:.2f} ms"
    lost = f", {found['failed']} FAILED" if found.get("failed") else ""
    return f"{load}: {found['output_throughput']:,.1f} tokens/s, {times}{lost}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Returns 0, 1 when a row failed, 2 when nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m helpers.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure what is not yet measured")
    running.add_argument("matrix", type=Path, help="a TOML file")
    running.add_argument("--out", type=Path, required=True, help="folder of results")
    reporting = commands.add_parser("report", help="tables and pictures of results")
    reporting.add_argument("results", type=Path, help="folder of results, or one file of it")
    reporting.add_argument("--pictures", type=Path, help="where the pictures go; without it none are drawn")
    paging = commands.add_parser("page", help="one page for people: pictures, figures, and which server for what")
    paging.add_argument("results", type=Path, help="folder of results, or one file of it")
    paging.add_argument("page", type=Path, help="the HTML file to write")
    paging.add_argument(
        "--ttft", type=float, default=Limits.ttft_ms, metavar="MS", help="longest median wait for a first token"
    )
    paging.add_argument("--tpot", type=float, default=Limits.tpot_ms, metavar="MS", help="and for each token after it")
    options = parser.parse_args(arguments)
    for stop_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop_signal, lambda number, _: sys.exit(128 + number))
    try:
        if options.command == "report":
            bench_report.show(options.results, options.pictures)
            return 0
        if options.command == "page":
            print(*bench_page.write(options.results, options.page, Limits(options.ttft, options.tpot)), sep="\n")
            print(f"{options.page} is written.")
            return 0
        failures = run(read(options.matrix), options.out, lambda text: print(strftime("%H:%M:%S"), text, flush=True))
        for said in failures:
            print(f"failed: {said}", file=sys.stderr)
        return 1 if failures else 0
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
