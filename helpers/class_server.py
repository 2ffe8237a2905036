"""What a class does to its server: requests, tokens, time to first token, cache and queue, as they went since we look."""

import math
import time
from collections import deque
from dataclasses import dataclass, field

import pandas as pd
from openai import OpenAI

from helpers import metrics
from helpers.metrics import Snapshot

TTFT, FINISHED = "time_to_first_token_seconds", "request_success"
RECENT = 60.0  # seconds over which the times to first token are taken


@dataclass(frozen=True)
class Moment:
    """The server at one moment: its snapshot, requests finished since its start, and the times to first token lately.

    `ttft_median` and `ttft_95` are seconds, of the requests whose first token came in the last RECENT seconds or since we look;
    NaN when there were none.
    """

    snapshot: Snapshot
    finished: int
    ttft_median: float
    ttft_95: float


@dataclass
class ServerHistory:
    """The moments of a server, the oldest first; so many seconds of them are kept."""

    seconds: float = 15 * 60
    moments: list[Moment] = field(default_factory=list)
    _tables: deque[tuple[float, pd.DataFrame]] = field(default_factory=deque)  # times to first token, by seconds

    def take(self, client: OpenAI) -> Moment:
        """Look at the server now. Raises what metrics.read raises; a server that was restarted begins a new history."""
        return self.add(metrics.fetch(client), time.monotonic())

    def add(self, text: str, at: float) -> Moment:
        """Add what the text of /metrics says, read at a time in seconds."""
        now, table = metrics.snapshot_of(text, at), metrics.parse(text)
        if self.moments and now.generation_tokens < self.moments[-1].snapshot.generation_tokens:
            self.moments.clear()
            self._tables.clear()
        first_tokens = table[table["metric"] == TTFT]
        while len(self._tables) > 1 and self._tables[1][0] <= at - RECENT:
            self._tables.popleft()
        since = self._tables[0][1] if self._tables else first_tokens
        finished = int(table.loc[table["metric"] == FINISHED, "value"].sum())
        shares = (0.5, 0.95)
        times = [math.nan if first_tokens.empty else metrics.quantile(first_tokens, TTFT, s, since) for s in shares]
        self._tables.append((at, first_tokens))
        self.moments.append(Moment(now, finished, *times))
        while self.moments[0].snapshot.time < at - self.seconds:
            del self.moments[0]
        return self.moments[-1]

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each moment, by minutes before the last one (negative).

        running, waiting, kv_usage (0-1), ttft_median and ttft_95 (s); requests_per_minute, generated_per_second and
        prompt_per_second since the row before; requests, prompt_tokens and generated_tokens since the server's start.
        """
        found = []
        for number, moment in enumerate(self.moments):
            now, before = moment.snapshot, self.moments[number - 1] if number else None
            change = metrics.rates(before.snapshot, now) if before else None
            done = 60 * (moment.finished - before.finished) / change.seconds if before and change else math.nan
            found.append({
                "running": now.running, "waiting": now.waiting, "kv_usage": now.kv_usage,
                "ttft_median": moment.ttft_median, "ttft_95": moment.ttft_95, "requests_per_minute": done,
                "generated_per_second": change.generation_tokens_per_second if change else math.nan,
                "prompt_per_second": change.prompt_tokens_per_second if change else math.nan,
                "requests": moment.finished, "prompt_tokens": now.prompt_tokens, "generated_tokens": now.generation_tokens,
            })  # fmt: skip
        last = self.moments[-1].snapshot.time if self.moments else 0.0
        minutes = [(moment.snapshot.time - last) / 60 for moment in self.moments]
        return pd.DataFrame(found, index=pd.Index(minutes, name="minutes"))
