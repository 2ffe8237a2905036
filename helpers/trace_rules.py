"""Play a trace back event by event, without the simulator, and check that it could have happened."""

from collections.abc import Iterator, Mapping

from helpers.trace import Record, Trace


class Replay:
    """Who holds what, rebuilt from the events of a trace.

    `steps()` stops at each record when its first step computes; `tables`, `owners` and `tokens` are then what they are
    in that step. What does not add up is noted in `wrong`.
    """

    def __init__(self, trace: Trace):
        self.trace, self.size = trace, trace.settings["block_size"]
        self.told = {request["id"]: request for request in trace.told}
        self.waiting: list[str] = []  # as a set: order is not kept
        self.prefilling: set[str] = set()
        self.decoding: set[str] = set()
        self.preempted: set[str] = set()  # ever
        self.done: set[str] = set()
        self.tables: dict[str, list[int]] = {}  # of those with blocks
        self.tokens: dict[str, int] = {}  # computed, of those with blocks
        self.written = dict.fromkeys(self.told, 0)
        self.owners: dict[int, list[str]] = {}
        self.findable: set[int] = set()  # blocks without owner whose content can be found
        self.scheduled: dict[str, int] = {}  # prefill tokens of this step
        self.wrong: list[str] = []

    def steps(self) -> Iterator[Record]:
        """Each record of the trace, at the moment when its first step computes."""
        for record in self.trace.steps:
            self.scheduled = {}
            kinds = [event[0] for event in record["events"]]
            end = kinds.index("finish") if "finish" in kinds else len(kinds)  # from there on: after the model
            decoding = set(self.decoding)
            for kind, name, *more in record["events"][:end]:
                getattr(self, f"_{kind}")(name, *more)
            decoding &= self.decoding
            for name in decoding:
                self.tokens[name] += 1
            yield record
            for name in decoding:
                self.tokens[name] += record["count"] - 1
                self.written[name] += record["count"]
            for name in self.scheduled:
                if name in self.decoding:
                    self.written[name] += 1
            for kind, name, *more in record["events"][end:]:
                getattr(self, f"_{kind}")(name, *more)

    def _expect(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.wrong.append(sentence)

    def _arrive(self, name: str) -> None:
        self.waiting.append(name)

    def _admit(self, name: str, cached: int, *shared: int) -> None:
        self._expect(name in self.waiting, f"{name} is admitted and does not wait")
        self.waiting = [other for other in self.waiting if other != name]
        self.prefilling.add(name)
        self.tables[name], self.tokens[name] = list(shared), cached
        self._expect(cached == len(shared) * self.size, f"{name} shares {len(shared)} blocks and {cached} tokens")
        for block in shared:
            self._expect(block in self.owners or block in self.findable, f"{name} shares block {block}, which is empty")
            self.findable.discard(block)
            self.owners.setdefault(block, []).append(name)

    def _take(self, name: str, *blocks: int) -> None:
        for block in blocks:
            self._expect(block not in self.owners, f"block {block} goes to {name} and is {self.owners.get(block)}'s")
            self._expect(0 < block < self.trace.settings["blocks"], f"there is no block {block} to take")
            self.findable.discard(block)
            self.owners[block] = [name]
            self.tables[name].append(block)

    def _prefill(self, name: str, tokens: int, left: int) -> None:
        self.tokens[name] += tokens
        self.scheduled[name] = tokens
        known = self.told[name]["prompt"] + self.written[name]
        self._expect(
            self.tokens[name] + left == known, f"{name} lost or won tokens: {self.tokens[name]} + {left} of {known}"
        )
        if not left:
            self.prefilling.discard(name)
            self.decoding.add(name)

    def _preempt(self, name: str) -> None:
        self._expect(name in self.prefilling | self.decoding, f"{name} is preempted and does not run")
        self.prefilling.discard(name)
        self.decoding.discard(name)
        self.waiting.append(name)
        self.preempted.add(name)

    def _finish(self, name: str) -> None:
        self._expect(name in self.decoding, f"{name} finishes and does not write")
        self._expect(
            self.written[name] == self.told[name]["output"], f"{name} finishes after {self.written[name]} tokens"
        )
        self.decoding.discard(name)
        self.done.add(name)

    def _free(self, name: str, *kept: int) -> None:
        for block in self.tables.pop(name):
            self.owners[block].remove(name)
            if not self.owners[block]:
                del self.owners[block]
        del self.tokens[name]
        self._expect(not set(kept) & set(self.owners), f"{name} leaves blocks that have owners")
        self.findable |= set(kept)

    def stored(self) -> int:
        """Tokens in the cache; a shared block counts once."""
        return sum(self.tokens.values()) - self.size * sum(len(names) - 1 for names in self.owners.values())


def violations(trace: Trace) -> Iterator[str]:
    """What cannot be true in this trace, a sentence each."""
    replay = Replay(trace)
    try:
        yield from _step_by_step(replay)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        yield f"the trace cannot be played back any further: {error!r}"
    yield from replay.wrong
    yield from _at_the_end(replay)


def _step_by_step(replay: Replay) -> Iterator[str]:
    settings, told_until = replay.trace.settings, 0
    for record in replay.steps():
        where = f"step {record['step']}"
        computed = record["prefill"] + record["decode"]
        if computed > settings["max_num_batched_tokens"]:
            yield f"{where}: {computed} tokens are more than max_num_batched_tokens"
        if record["running"] > settings["max_num_seqs"]:
            yield f"{where}: {record['running']} requests are more than max_num_seqs"
        if record["step"] < told_until:
            yield f"{where} is told twice"
        told_until = record["step"] + record["count"]
        yield from _compare(record, replay, where)
        for name, table in replay.tables.items():
            still_to_come = record["count"] - 1 if name in replay.decoding else 0
            if replay.tokens[name] + still_to_come > len(table) * replay.size:
                yield f"{where}: {name} has more tokens than its {len(table)} blocks hold"


def _compare(record: Mapping[str, object], replay: Replay, where: str) -> Iterator[str]:
    """The record's own figures against those of the replay."""
    found = {
        "running": len(replay.prefilling) + len(replay.decoding),
        "waiting": len(replay.waiting),
        "prefill": sum(replay.scheduled.values()),
        "decode": len(replay.decoding) - sum(name in replay.decoding for name in replay.scheduled),
        "blocks": len(replay.owners),
        "tokens": replay.stored(),
    }
    for field, value in found.items():
        if record[field] != value:
            yield f"{where}: {field} is told as {record[field]} and is {value}"


def _at_the_end(replay: Replay) -> Iterator[str]:
    for name in replay.told:
        if name not in replay.done:
            yield f"{name} never finishes"
    if replay.owners:
        yield f"blocks {sorted(replay.owners)} are never given back"
    arrivals = {name: request["arrival"] for name, request in replay.told.items()}
    lives = [life for life in replay.trace.requests.values() if life.admitted >= 0]
    for earlier in lives:
        for later in (life for life in lives if arrivals[life.id] > arrivals[earlier.id]):
            if later.admitted < earlier.admitted:
                yield f"{later.id} came after {earlier.id} and was admitted before it"
