"""The command `python -m helpers.slurm`: deployments on a cluster from a terminal; --json for programs."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from helpers import doctor, jobs, sites, slurm
from helpers.environment import MARKS, PROBLEM, Finding
from helpers.errors import WorkshopError
from helpers.jobs import FAILED, PENDING, READY, Status
from helpers.queue import SlurmError

LINES = 40  # of a log, unless all is asked for


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when all is well, 1 when a deployment would fail or has failed, 2 for what cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:cut])
    options.extra = given[cut + 1 :]
    try:
        if options.extra and "small" not in options:
            raise SlurmError("Only submit and preflight take options for sbatch after `--`.")
        status: int = options.run(options)
        return status
    except WorkshopError as error:
        if options.json:
            _print_json({"error": str(error)})
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0


# --- the commands --------------------------------------------------------------------------------------------------


def _deployments(options: argparse.Namespace) -> int:
    site, found = sites.read_site(options.site), slurm.deployments(options.site)
    if options.json:
        _print_json([asdict(d) | {"path": str(d.path), "here": slurm.has_gpus_for(site, d)} for d in found])
        return 0
    rows = []
    for d in found:
        gpus = f"{d.nodes} x {d.gpus_per_node} {d.gpu}".strip()
        here = "yes" if slurm.has_gpus_for(site, d) else "no"
        rows.append((d.name, d.title, gpus, f"TP{d.tp} PP{d.pp}" + (f" DP{d.dp}" if d.dp > 1 else ""), d.time, here))
    _print_table(("deployment", "", "nodes x GPUs", "layout", "time", f"on {site.name}"), rows)
    print("python -m helpers.slurm submit NAME     submits one; --small swaps in the workshop's small Llama")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    findings = slurm.preflight(slurm.prepare(options.name, **_settings(options)))
    _print_findings(findings, options.json)
    return 1 if any(finding.state == PROBLEM for finding in findings) else 0


def _submit(options: argparse.Namespace) -> int:
    submission = slurm.prepare(options.name, **_settings(options))
    if options.dry_run:
        told = {"command": submission.shell, "arguments": submission.arguments, "variables": submission.variables}
        _print_json(told) if options.json else print(submission.shell)
        return 0
    slurm.need_slurm()
    if not options.no_preflight:
        findings = slurm.preflight(submission)
        if problems := [finding for finding in findings if finding.state == PROBLEM]:
            _print_findings(problems, options.json)
            print(
                f"Not submitted: {submission.deployment.name} would fail. --no-preflight submits it all the same.",
                file=sys.stderr,
            )
            return 1
    job = slurm.send(submission)
    if options.json:
        _print_json({"job": job.id, "name": job.name, "folder": str(job.folder)})
    else:
        print(f"Submitted {job}. `python -m helpers.slurm status {job.id}` shows how it is doing.")
    return 0


def _status(options: argparse.Namespace) -> int:
    if not options.wait:
        return _tell(slurm.status(options.job), options.json)
    say = None if options.json else lambda status: print(f"{time.strftime('%H:%M:%S')} {status}", flush=True)
    return _tell(slurm.wait(options.job, on_status=say), options.json)


def _cancel(options: argparse.Namespace) -> int:
    _tell(slurm.cancel(options.job), options.json)
    return 0


def _tell(status: Status, as_json: bool) -> int:
    if as_json:
        job = {"job": status.job.id, "name": status.job.name, "folder": str(status.job.folder)}
        _print_json(job | {name: value for name, value in asdict(status).items() if name != "job"})
    else:
        print(str(status)[0].upper() + str(status)[1:])
        place = [f"on {status.nodes}" if status.nodes else "", f"{status.time_left} left" if status.time_left else ""]
        if any(place):
            print("  " + ", ".join(filter(None, place)))
        if status.phase == READY:
            print("  in a notebook: client = connect()")
        elif status.phase == FAILED:
            print(f"  more: python -m helpers.slurm doctor {status.job.id}")
        elif status.phase != PENDING and status.job.folder.is_dir():
            print(f"  logs: {status.job.folder}")
    return 1 if status.phase == FAILED else 0


def _logs(options: argparse.Namespace) -> int:
    if options.follow:
        for text in slurm.follow(options.job, options.rank):
            _print_json({"text": text}, indent=None) if options.json else print(text, end="", flush=True)
        return 0
    path, text = jobs.read_log(jobs.find(options.job)[0], options.rank)
    lines = text.splitlines()[-options.lines :]
    if options.json:
        _print_json({"file": str(path), "text": "\n".join(lines)})
    else:
        print(*lines, sep="\n")
        print(f"-- the end of {path}", file=sys.stderr)
    return 0


def _top(options: argparse.Namespace) -> int:
    rows = slurm.top(options.job)
    if options.json:
        _print_json(rows)
    elif rows and "gpu" in rows[0]:
        cells = [(r["node"], r["gpu"], r["name"], f"{_show(r['used_gib'])} / {_show(r['total_gib'])}",
                   _show(r["utilisation_percent"]), _show(r["power_w"])) for r in rows]  # fmt: skip
        _print_table(("node", "GPU", "", "memory, GiB", "busy, %", "power, W"), cells)
    else:
        print("No GPU is there (no nvidia-smi on the job's nodes): its processes instead.")
        values = [
            (r["node"], r["pid"], _show(r["cpu_percent"]), f"{r['rss_gib']:.2f}", r["command"][:60]) for r in rows
        ]
        _print_table(("node", "process", "core, %", "memory, GiB", "command"), values)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    diagnosis = slurm.doctor(options.job)
    if options.json:
        _print_json(asdict(diagnosis))
    else:
        print(doctor.report(diagnosis))
    return 0 if diagnosis.known else 1


# --- how it is told ------------------------------------------------------------------------------------------------


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _print_json(value: object, indent: int | None = 1) -> None:
    print(json.dumps(value, indent=indent, default=str, ensure_ascii=False), flush=True)


def _print_findings(findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        return _print_json([asdict(finding) for finding in findings])
    _print_table(("", "", "found", "mend"), [(MARKS[f.state], f.what, f.found, f.mend) for f in findings])


def _print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: node[1-2] is no markup
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _settings(options: argparse.Namespace) -> slurm.Settings:
    return {
        "small": options.small, "site": options.site, "partition": options.partition, "account": options.account,
        "reservation": options.reservation, "time": options.time, "variables": dict(options.set), "extra": options.extra,
    }  # fmt: skip


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form VARIABLE=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m helpers.slurm", description="vLLM servers on a Slurm cluster.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="for programs")
        added.set_defaults(run=run)
        return added

    command("deployments", _deployments, "list what can be submitted").add_argument(
        "--site", help="a profile in slurm/sites"
    )
    _deployment_options(command("preflight", _preflight, "check a deployment before it waits in a queue"))
    submit = command("submit", _submit, "check a deployment and submit it; options for sbatch after --")
    _deployment_options(submit)
    submit.add_argument("--dry-run", action="store_true", help="only print the command")
    submit.add_argument("--no-preflight", action="store_true", help="submit without the checks")
    for name, run, text in (
        ("status", _status, "how a job is doing"),
        ("logs", _logs, "the end of a job's log: Slurm's and the launcher's, or a rank's"),
        ("top", _top, "what the job's GPUs do at this moment"),
        ("doctor", _doctor, "why a job failed or is stuck"),
        ("cancel", _cancel, "end a job, and wait until it has ended"),
    ):
        added = command(name, run, text)
        added.add_argument("job", nargs="?", help="a job's number; default: your newest workshop job")
        if name == "status":
            added.add_argument(
                "--wait", "-w", action="store_true", help="until it is ready or over, saying how far it is"
            )
        if name == "logs":
            added.add_argument("--rank", type=int, help="vLLM's log of this node of the job, counted from 0")
            added.add_argument("--follow", "-f", action="store_true", help="as it grows, until the job is over")
            added.add_argument("--lines", "-n", type=int, default=LINES, help=f"default {LINES}")
    return parser


def _deployment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a deployment's name, or the path of an sbatch file")
    parser.add_argument("--small", action="store_true", help="serve the workshop's small Llama in its place")
    for option in ("site", "partition", "account", "reservation", "time"):
        parser.add_argument(f"--{option}", help="in place of the site's or the file's")
    parser.add_argument(
        "--set", type=_variable, action="append", default=[], metavar="VARIABLE=VALUE", help="MODEL, TP, PP, FLAGS, ..."
    )
