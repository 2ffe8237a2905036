"""A trace as shapes: what both pictures draw, the still of helpers.trace_plots and the interactive one of helpers.trace_view.

Everything is in steps and rows, not in pixels. `start` is included, `stop` is not.
"""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from helpers.trace import Record, Told, Trace, TraceError
from helpers.trace_rules import Replay

# Okabe and Ito's palette, which the colour-blind can tell apart (jfly.uni-koeln.de/color); its black is for shared blocks.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MOST = {"requests": 60, "blocks": 512, "steps": 4000}


Row = TypeVar("Row")
Shown = TypeVar("Shown")
#: Of a block: its owners, as (request, place in its block table).
Owners = tuple[tuple[int, int], ...]
#: What a request does, and its tokens - step, which stay the same while it decodes.
Doing = tuple[str, int]


def scene(trace: Trace) -> dict[str, Any]:
    """Plain data, ready for JSON.

    - `requests`: id, prompt, output, `color`, `striped` (from the eighth on: colours come again) and `bars` [kind, start,
      stop, tokens computed at the end of the first step]. Kinds: wait, prefill, decode, again (waits after a
      preemption), held (done, but still on its seat). Tokens grow by one a step while it decodes.
    - `spans`: [block, start, stop, owners], each owner as [request, place in its block table]; without owners its
      content can still be found.
    - `use`: [start, stop, running, waiting, prefill, decode, tokens, blocks, stranded].
    - `notes`: [step, sentence] of what happened.

    Raises TraceError for a trace too large to be seen.
    """
    _check_size(trace)
    number = {request["id"]: i for i, request in enumerate(trace.told)}
    spans, bars = _Rows[int, Owners](), _Rows[str, Doing]()
    replay, stop = Replay(trace), 0
    for record in replay.steps():
        if record["step"] > stop:  # no request was there in between
            spans.now(stop, {})
            bars.now(stop, {})
        spans.now(record["step"], _holders(replay, number))
        bars.now(record["step"], _kinds(replay, record["step"]))
        stop = record["step"] + record["count"]
    spans.now(stop, {})
    bars.now(stop, {})
    return {
        "summary": trace.summary(), "first": trace.steps[0]["step"], "end": stop,
        "blocks": trace.settings["blocks"], "size": trace.settings["block_size"],
        "requests": [{**_looks(i), **_request(told, bars.rows[told["id"]])} for i, told in enumerate(trace.told)],
        "spans": [
            [block, start, end, list(map(list, owners))]
            for block, pieces in sorted(spans.rows.items()) for start, end, owners in pieces
        ],
        "use": [_use(record) for record in trace.steps],
        "notes": [[record["step"], note] for record in trace.steps for note in _notes(record)],
    }  # fmt: skip


def _check_size(trace: Trace) -> None:
    sizes = {"requests": len(trace.told), "blocks": trace.settings["blocks"], "steps": trace.duration}
    for what, size in sizes.items():
        if size > MOST[what]:
            raise TraceError(f"{size:,} {what} are too many to see anything: draw a trace of at most {MOST[what]:,}.")


class _Rows(Generic[Row, Shown]):
    """What each row shows, from when to when."""

    def __init__(self) -> None:
        self.rows: dict[Row, list[tuple[int, int, Shown]]] = {}
        self._open: dict[Row, tuple[int, Shown]] = {}

    def now(self, step: int, shown: Mapping[Row, Shown]) -> None:
        for row, (start, what) in list(self._open.items()):
            if shown.get(row) != what:
                self.rows.setdefault(row, []).append((start, step, what))
                del self._open[row]
        for row, what in shown.items():
            self._open.setdefault(row, (step, what))


def _holders(replay: Replay, number: dict[str, int]) -> dict[int, Owners]:
    holders: dict[int, Owners] = dict.fromkeys(replay.findable, ())
    for name, table in replay.tables.items():
        for place, block in enumerate(table):
            holders[block] = (*holders.get(block, ()), (number[name], place))
    return holders


def _kinds(replay: Replay, step: int) -> dict[str, Doing]:
    kinds: dict[str, Doing] = {name: ("again" if name in replay.preempted else "wait", 0) for name in replay.waiting}
    for name, tokens in replay.tokens.items():
        if name in replay.done:
            kinds[name] = ("held", tokens)
        elif name in replay.scheduled:
            kinds[name] = ("prefill", tokens - step)
        else:
            kinds[name] = ("decode", tokens - step)
    return kinds


def _looks(i: int) -> dict[str, object]:
    return {"color": COLORS[i % len(COLORS)], "striped": i >= len(COLORS)}


def _request(told: Told, pieces: list[tuple[int, int, Doing]]) -> dict[str, object]:
    bars = [
        [kind, start, stop, base + (start if kind in ("prefill", "decode") else 0)]
        for start, stop, (kind, base) in pieces
    ]
    return {"id": told["id"], "prompt": told["prompt"], "output": told["output"], "bars": bars}


def _use(record: Record) -> list[int]:
    return [
        record["step"], record["step"] + record["count"], record["running"], record["waiting"], record["prefill"],
        record["decode"], record["tokens"], record["blocks"], record["stranded"],
    ]  # fmt: skip


def _notes(record: Record) -> list[str]:
    notes = []
    for kind, name, *more in record["events"]:
        if kind == "arrive":
            notes.append(f"{name} arrives")
        elif kind == "admit":
            notes.append(f"{name} is admitted" + (f" with {more[0]} tokens from the cache" if more[0] else ""))
        elif kind == "preempt":
            notes.append(f"{name} is preempted and loses its blocks")
        elif kind == "finish":
            notes.append(f"{name} writes its last token")
    return notes
