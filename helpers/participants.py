"""Can this server take a class? Participants who chat now and then, and then all at once, and what they would feel.

    python -m helpers.load --participants 60 --think-time 20 --duration 120

Each participant thinks, asks, reads on, and asks again in the same conversation; after a few questions a new one begins.
At the end all ask at the same moment, as a class does that is told to run the cell now. Nothing is tried again: what
fails here fails in a notebook. The exit status is 0 for go, 1 for no-go, 2 when nothing could be tried.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import openai
from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helpers import metrics
from helpers.client import connect
from helpers.errors import WorkshopError
from helpers.load_async import Line
from helpers.load_http import now
from helpers.load_records import LoadError, Record, Run
from helpers.load_stats import percentiles
from helpers.load_stream import sentence
from helpers.tiny.corpus import QUESTIONS

TALK = 3  # questions in one conversation
CHATTING, TOGETHER = "chatting", "all at once"


@dataclass(frozen=True)
class Limits:
    """What 95 of 100 answers must keep, in seconds.

    A conversation bears pauses of some two seconds (R. B. Miller, AFIPS Fall Joint Computer Conference, 1968), attention
    some ten (J. Nielsen, Usability Engineering, 1993). People read about 240 words a minute (M. Brysbaert, Journal of
    Memory and Language 109, 2019), which at four tokens to three words is a token each 0.19 s.
    """

    ttft: float = 2.0
    ttft_together: float = 10.0
    tpot: float = 0.19


@dataclass
class Report:
    """What a class would feel: the runs of the two phases, the server's peaks (None where it does not tell), the verdict."""

    phases: dict[str, Run]
    limits: Limits
    peak: dict[str, float] | None
    reasons: list[str] = field(default_factory=list)  # against; empty for go

    @property
    def go(self) -> bool:
        """Whether the class can be held here: nothing speaks against it."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in seconds."""
        phases = {}
        for name, run in self.phases.items():
            felt = {}
            if run.done > run.failed:
                figures = percentiles(run) / 1000
                felt = {
                    row.lower(): {c: round(float(figures.loc[row, c]), 4) for c in ("p50", "p95", "p99")}
                    for row in ("TTFT", "TPOT")
                    if row in figures.index
                }
            phases[name] = {
                "questions": run.done,
                "failed": run.failed,
                **felt,
                "causes": sorted({r.error for r in run.failures}),
            }
        return {
            "go": self.go,
            "reasons": self.reasons,
            "phases": phases,
            "server": self.peak,
            "limits": asdict(self.limits),
        }


class Class:
    """Participants and their conversations, drawn from one seed."""

    def __init__(self, participants: int, think_time: float, max_tokens: int, seed: int):
        self._draws = [random.Random(f"{seed}-{number}") for number in range(participants)]
        self._think_time = think_time
        self._common: dict[str, object] = {"max_tokens": max_tokens}
        self._talks: list[list[dict[str, str]]] = [[] for _ in range(participants)]
        self._began = now()

    async def attend(self, client: OpenAI, duration: float) -> dict[str, Run]:
        """The chats of `duration` seconds, then the question of all at once."""
        self._common["model"] = (await asyncio.to_thread(client.models.list)).data[0].id
        everyone = range(len(self._draws))
        async with Line(client, len(self._draws), tries=1) as line:
            self._began = now()
            chats = await asyncio.gather(*[self._chat(line, number, duration) for number in everyone])
            chatting = _run([record for chat in chats for record in chat])
            self._began = now()
            together = _run(await asyncio.gather(*[self._ask(line, number) for number in everyone]))
        return {CHATTING: chatting, TOGETHER: together}

    async def _chat(self, line: Line, number: int, duration: float) -> list[Record]:
        draw, records = self._draws[number], []
        pause = draw.uniform(0, self._think_time)  # they do not begin at the same moment
        while now() - self._began + pause < duration:
            await asyncio.sleep(pause)
            records.append(await self._ask(line, number))
            pause = self._think_time * draw.uniform(0.5, 1.5)
        return records

    async def _ask(self, line: Line, number: int) -> Record:
        talk = self._talks[number]
        if len(talk) >= 2 * TALK:
            talk.clear()
        question = self._draws[number].choice(self._draws[number].choice(QUESTIONS["topics"])["ask"])
        messages = [*talk, {"role": "user", "content": question}]
        started = now() - self._began
        record = Record(number, started, started, worker=number)
        await line.ask({"messages": messages}, self._common, record)
        if record.ok:
            talk += [messages[-1], {"role": "assistant", "content": record.text}]
        return record


def _run(records: list[Record]) -> Run:
    end = max((record.ended for record in records), default=0.0)
    return Run(records, end, len(records), len(records), sum(not record.ok for record in records))


def rehearse(
    client: OpenAI, *, participants: int, think_time: float, duration: float, max_tokens: int = 128,
    limits: Limits | None = None, seed: int = 0,
) -> Report:  # fmt: skip
    """Replay a class against this server; times in seconds. Takes `duration`, and as long as the last answers take.

    Raises LoadError for counts and times that are not above 0.
    """
    if participants < 1 or think_time <= 0 or duration <= 0 or max_tokens < 1:
        raise LoadError("Participants, think time, duration and tokens must all be more than 0.")
    recording = None
    with ExitStack() as stack:
        with suppress(WorkshopError):  # a server behind a gateway shows no metrics
            recording = stack.enter_context(metrics.record(client, interval=0.2))
        phases = asyncio.run(Class(participants, think_time, max_tokens, seed).attend(client, duration))
        watching = stack.pop_all()
    with suppress(WorkshopError):  # the server may be gone; what was seen of it remains
        watching.close()
    limits = limits or Limits()
    return Report(phases, limits, _peak(recording), _against(phases, limits))


def _peak(recording: metrics.Recording | None) -> dict[str, float] | None:
    if recording is None:
        return None
    frame = recording.frame
    return {
        "running": int(frame["running"].max()), "waiting": int(frame["waiting"].max()),
        "kv_usage": round(float(frame["kv_usage"].max()), 3), "preemptions": int(frame["preemptions"].iloc[-1]),
    }  # fmt: skip


def _against(phases: dict[str, Run], limits: Limits) -> list[str]:
    """What speaks against holding the class on this server, a sentence each."""
    reasons = []
    for name, run in phases.items():
        if run.failed:
            causes = sorted({record.error for record in run.failures})
            reasons.append(f"{run.failed} of {run.done} questions failed ({name}): {causes[0]}")
        if run.done == run.failed:
            reasons += (
                [] if run.done else [f"nobody asked anything ({name}): make the duration longer than the think time."]
            )
            continue
        felt = percentiles(run) / 1000
        ttft = limits.ttft if name == CHATTING else limits.ttft_together
        if felt.loc["TTFT", "p95"] > ttft:
            reasons.append(
                f"one in 20 waits longer than {felt.loc['TTFT', 'p95']:.1f} s for an answer to begin ({name}); the limit is {ttft:g} s."
            )
        if "TPOT" in felt.index and felt.loc["TPOT", "p95"] > limits.tpot:
            reasons.append(
                f"one in 20 gets a token each {felt.loc['TPOT', 'p95']:.2f} s or slower ({name}); the limit is {limits.tpot:g} s."
            )
    return reasons


# --- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 for go, 1 for no-go, 2 when nothing could be tried."""
    options = _parser().parse_args(arguments)
    limits = Limits(options.ttft, options.ttft_together, options.tpot)
    try:
        client = connect(quiet=options.json)
        if not options.json:
            print(f"{options.participants} participants, {options.duration:g} s; then all at once.", flush=True)
        report = rehearse(
            client, participants=options.participants, think_time=options.think_time, duration=options.duration,
            max_tokens=options.max_tokens, limits=limits, seed=options.seed,
        )  # fmt: skip
    except (WorkshopError, openai.APIError) as error:
        print(sentence(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped: no verdict.", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        show(report)
    return 0 if report.go else 1


def show(report: Report) -> None:
    """The report as a table and a verdict."""
    table = Table("", "questions", "failed", "TTFT p50", "p95", "p99", "TPOT p95")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, phase in report.as_dict()["phases"].items():
        ttft, tpot = phase.get("ttft", {}), phase.get("tpot", {})
        felt = [f"{ttft[share]:.2f} s" if ttft else "–" for share in ("p50", "p95", "p99")]
        felt.append(f"{1000 * tpot['p95']:.0f} ms" if tpot else "–")
        table.add_row(name, str(phase["questions"]), str(phase["failed"]), *felt)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if report.peak:
        peak = report.peak
        console.print(
            f"The server had at most {peak['running']} requests running and {peak['waiting']} waiting, "
            f"{peak['kv_usage']:.0%} of its KV cache in use, {peak['preemptions']} preemptions."
        )
    else:
        console.print("The server shows no metrics, so how many requests waited is not known.")
    if report.go:
        console.print("[bold]GO[/bold]: no question failed, and 95 of 100 answers kept the limits.")
    for reason in report.reasons:
        console.print(f"[bold]NO-GO[/bold]: {escape(reason)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.load",
        description="Replay a class against the server at hand, and say whether it can take it.",
    )
    parser.add_argument("--participants", type=int, default=60)
    parser.add_argument("--think-time", type=float, default=20, help="seconds between an answer and the next question")
    parser.add_argument("--duration", type=float, default=120, help="seconds of chatting before all ask at once")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--ttft", type=float, default=Limits.ttft, help="p95 limit while chatting, seconds")
    parser.add_argument(
        "--ttft-together", type=float, default=Limits.ttft_together, help="p95 limit all at once, seconds"
    )
    parser.add_argument("--tpot", type=float, default=Limits.tpot, help="p95 limit of the time per token, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser
