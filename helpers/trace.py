"""What a simulation tells: one record for each engine step, or for several steps in which nothing but decoding happens.

A trace is plain data, so that it can be kept as JSON, checked (helpers.trace_rules) and drawn (helpers.trace_plots,
helpers.trace_view) by code that knows nothing of the simulator. A record holds, of `count` equal steps from `step` on:

| field | holds |
| --- | --- |
| `running`, `waiting` | requests while the model computes |
| `prefill`, `decode` | tokens computed in a step: of prompts (and of what is computed again), and one for each that decodes |
| `tokens` | tokens in the cache after the first of the steps; each further step adds `decode` |
| `blocks`, `blocks_after` | blocks in use while the model computes, and once requests that are done have left |
| `stranded` | free blocks that would do for the next request, did they lie side by side |
| `events` | what happened, in this order; see below |

Events, all in the first of the steps: `(arrive, id)`, `(admit, id, cached tokens, shared block, ...)`, `(take, id, block, ...)`,
`(prefill, id, tokens, tokens left)`, `(preempt, id)`, `(finish, id)`, `(free, id, block kept findable, ...)`.
A request writes a token in each step in which its prefill has none left, and in each later one until its finish.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from helpers.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

#: What happened, to which request, and with which numbers.
Event = tuple[str, str, *tuple[int, ...]]


class TraceError(WorkshopError):
    """This is no trace, or not one that can be drawn."""


class Settings(TypedDict):
    """Of a simulation; the names are vLLM's, see helpers.scheduler.simulate. `memory` is "paged" or "contiguous"."""

    memory: str
    blocks: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    policy: str
    chunked: bool
    prefix_caching: bool
    max_len: NotRequired[int | None]  # tokens of a contiguous piece


class Told(TypedDict):
    """A request as it came: tokens of its prompt, tokens to write, and the step in which it arrives."""

    id: str
    prompt: int
    output: int
    arrival: int


class Record(TypedDict):
    """One engine step, or several equal ones; the fields are explained above."""

    step: int
    count: int
    running: int
    waiting: int
    prefill: int
    decode: int
    tokens: int
    blocks: int
    blocks_after: int
    stranded: int
    events: list[Event]


@dataclass(frozen=True)
class Life:
    """What became of a request. Steps; `first_token` and `finish` are those that wrote its first and last token."""

    id: str
    prompt: int
    output: int
    arrival: int
    admitted: int
    first_token: int
    finish: int
    preemptions: int
    cached: int  # prompt tokens found in the cache when it was admitted first
    recomputed: int  # tokens computed more than once, because it was preempted


@dataclass(frozen=True)
class Trace:
    """`settings` of the simulation, the requests as `told`, and the records of its `steps`."""

    settings: Settings
    told: list[Told]
    steps: list[Record]

    @cached_property
    def requests(self) -> dict[str, Life]:
        """What became of each request, by id, in the order given."""
        return _lives(self)

    @property
    def finish_order(self) -> list[str]:
        """Ids in the order in which requests were done; those of one step in the order the engine looks at them."""
        return [event[1] for record in self.steps for event in record["events"] if event[0] == "finish"]

    @property
    def duration(self) -> int:
        """Engine steps. Steps in which there was no request are not steps."""
        return sum(record["count"] for record in self.steps)

    @property
    def peak_blocks(self) -> int:
        """Most blocks in use at once."""
        return max(record["blocks"] for record in self.steps)

    @property
    def peak_reported(self) -> int:
        """Most blocks that an engine's gauge shows: it is read when requests that are done have left."""
        return max(record["blocks_after"] for record in self.steps)

    @property
    def preemptions(self) -> int:
        """How often a request was preempted, of all requests."""
        return sum(life.preemptions for life in self.requests.values())

    @property
    def prefix_queries(self) -> int:
        """Tokens looked up in the cache at first admissions, as vLLM counts them; 0 without prefix caching."""
        return sum(life.prompt for life in self.requests.values()) if self.settings["prefix_caching"] else 0

    @property
    def prefix_hits(self) -> int:
        """How many of them were found."""
        return sum(life.cached for life in self.requests.values())

    def each_step(self) -> Iterator[Record]:
        """A record for every step, counts resolved; without events."""
        for record in self.steps:
            for i in range(record["count"]):
                yield {
                    **record,
                    "step": record["step"] + i,
                    "count": 1,
                    "tokens": record["tokens"] + i * record["decode"],
                    "events": [],
                }

    def table(self) -> "pd.DataFrame":
        """A DataFrame with a row for each step; memory in tokens.

        The cache is what is stored, what is held but empty (internal waste), what is free but too scattered for the next
        request (external waste), and what is free.
        """
        import pandas as pd

        size, usable = self.settings["block_size"], self.settings["blocks"] - 1
        table = pd.DataFrame(self.each_step()).set_index("step").drop(columns=["count", "events"])
        table["internal"] = table.blocks * size - table.tokens
        table["external"] = table.pop("stranded") * size
        table["free"] = (usable - table.blocks) * size - table.external
        return table

    def memory_shares(self) -> "pd.Series":
        """Mean shares (0-1) of the cache over all steps: stored tokens, internal and external waste, free."""
        parts = self.table()[["tokens", "internal", "external", "free"]]
        return (parts.mean() / parts.iloc[0].sum()).rename("share of the cache")

    def invariants(self) -> list[str]:
        """What is wrong with this trace, a sentence each; empty for a sound one."""
        from helpers.trace_rules import violations

        return list(violations(self))

    def summary(self) -> str:
        """One sentence with what a picture of this trace shows, for those who do not see it."""
        peak = max(self.steps, key=lambda record: record["blocks"])
        times = "once" if self.preemptions == 1 else f"{self.preemptions} times"
        preempted = f" Requests were preempted {times}." if self.preemptions else ""
        shared = f" {self.prefix_hits} prompt tokens were found in the cache." if self.prefix_hits else ""
        number = f"{len(self.told)} requests" if len(self.told) > 1 else "1 request"
        return (
            f"{number} in {self.duration} steps. At most {peak['blocks']} of {self.settings['blocks'] - 1} blocks in use, first in "
            f"step {peak['step']}. First to finish: {self.finish_order[0]}, last: {self.finish_order[-1]}.{preempted}{shared}"
        )

    def to_json(self) -> str:
        """The whole trace as one line of JSON, for `from_json`."""
        return json.dumps(
            {"settings": self.settings, "requests": self.told, "steps": self.steps}, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """The trace of a text that `to_json` wrote. Raises TraceError for any other."""
        try:
            data = json.loads(text)
            for record in data["steps"]:
                record["events"] = [tuple(event) for event in record["events"]]
            return cls(data["settings"], data["requests"], data["steps"])
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError("This is no trace: it should be the JSON that Trace.to_json() writes.") from error


def _lives(trace: Trace) -> dict[str, Life]:
    found: dict[str, dict[str, Any]] = {
        r["id"]: {**r, "admitted": -1, "first_token": -1, "finish": -1, "preemptions": 0, "cached": 0, "recomputed": 0}
        for r in trace.told
    }
    for record in trace.steps:
        for kind, name, *more in record["events"]:
            life = found[name]
            if kind == "admit" and life["admitted"] < 0:
                life["admitted"], life["cached"] = record["step"], more[0]
            elif kind == "prefill":
                life["recomputed"] += more[0]
                if not more[1]:
                    life["recomputed"] -= 1  # it writes a token now, which no step of decoding has to
                    if life["first_token"] < 0:
                        life["first_token"] = record["step"]
            elif kind == "preempt":
                life["preemptions"] += 1
            elif kind == "finish":
                life["finish"] = record["step"]
                life["recomputed"] += life["cached"] + 1 - life["prompt"]  # computed, less what had to be
    return {name: Life(**life) for name, life in found.items()}
