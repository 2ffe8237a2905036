"""The loop of the simulator in helpers.scheduler: one engine step after another, each told as one record.

Decoding is a straight line, one token a step, so a request is only touched when something happens to it: it arrives, is
admitted, reads a piece of its prompt, needs a block, is preempted, is done. Steps without any such thing are skipped and
told as one record with a count. Time and memory then grow with the requests and their blocks, not with their tokens.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import accumulate, islice
from operator import attrgetter
from typing import TYPE_CHECKING

from helpers.paging import BlockPool, ContiguousPool
from helpers.scheduler_job import Job
from helpers.trace import Event, Record, Settings

if TYPE_CHECKING:
    from helpers.scheduler import Request

in_order = attrgetter("order")


class Engine:
    """Runs the requests to the end; `settings` as in Trace.settings, already checked."""

    def __init__(self, requests: "Sequence[Request]", settings: Settings):
        self.size, self.budget = settings["block_size"], settings["max_num_batched_tokens"]
        self.seats, self.chunked = settings["max_num_seqs"], settings["chunked"]
        self.static = settings["policy"] == "static"
        self.contiguous, self.piece = settings["memory"] == "contiguous", settings.get("max_len")
        blocks, caching = settings["blocks"], settings["prefix_caching"]
        self.pool = ContiguousPool(blocks) if self.contiguous else BlockPool(blocks, caching)
        # The same pool, if it finds the blocks of prompts that begin alike.
        self.cache = self.pool if isinstance(self.pool, BlockPool) and caching else None
        self.coming = deque(sorted(map(Job, requests), key=attrgetter("arrival")))
        self.waiting: deque[Job] = deque()
        self.running: dict[Job, None] = {}  # in the order of admission
        self.partial: Job | None = None  # the one whose prompt is partly read; always the last in `running`
        self.decoding = 0  # how many of `running` decode: all but `partial`
        self.stored = 0  # tokens in the cache; shared ones count once
        self.open = 0  # static: places of the batch that are still to be taken
        self.held: list[Job] = []  # static: done, but their places are not free yet
        self.step, self.admitted = 0, 0
        self.records: list[Record] = []
        self._blocks_due: dict[int, list[Job]] = {}  # step -> who may need a block then
        self._ends: dict[int, list[Job]] = {}  # step -> who may be done then
        self._agenda: list[int] = []  # heap of the steps in these two

    def run(self) -> list[Record]:
        """Serve until all requests are done; the records of all steps."""
        while self.coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.step = max(self.step, self.coming[0].arrival)  # an engine without requests does not step
            self._one_step()
            self._skip_quiet_steps()
        return self.records

    def _one_step(self) -> None:
        self.events: list[Event] = []
        self.started: list[Job] = []  # prompt read to its end: they write a token in this step
        self.again = self.preempted = False  # again: someone who waits may be admitted in the very next step
        self.left = self.budget
        while self.coming and self.coming[0].arrival <= self.step:
            self.waiting.append(self.coming.popleft())
            self.events.append(("arrive", self.waiting[-1].id))
        self._serve_running()
        if self.waiting and not self.preempted:
            self._admit()
        prefill = self.budget - self.left - self.decoding
        self.stored += self.decoding
        record = self._record(1, prefill)
        for job in self.started:
            self._start_decoding(job)
        if self.step in self._ends:
            self._finish()
            record["blocks_after"] = self.pool.usable - self.pool.free

    def _serve_running(self) -> None:
        if self.step in self._blocks_due:
            self._extend()
        self.left -= self.decoding
        if (job := self.partial) is not None:
            tokens = min(job.tokens - job.computed, self.left)
            blocks = -(-(job.computed + tokens) // self.size) - len(job.blocks)
            if blocks <= 0 or self._make_room(job, blocks):
                self._take(job, blocks)
                self._compute(job, tokens)

    def _extend(self) -> None:
        """One block more for each that decodes and has filled its last one."""
        jobs = self._blocks_due.pop(self.step)
        if len(jobs) > 1:
            jobs = list(dict.fromkeys(sorted(jobs, key=in_order)))
        jobs = [job for job in jobs if job.due == self.step]  # the others were preempted since
        if len(jobs) <= self.pool.free:
            self._give(jobs)
        else:
            for job in jobs:
                if job.due == self.step and self._make_room(job, 1):  # it may be among those who had to make room
                    self._give([job])

    def _give(self, jobs: list[Job]) -> None:
        after = self.step + self.size
        for job, block in zip(jobs, self.pool.take(len(jobs)), strict=True):
            job.blocks.append(block)
            job.due = after
            self.events.append(("take", job.id, block))
            if after <= job.finish:
                self._note(self._blocks_due, after, job)

    def _make_room(self, job: Job, blocks: int) -> bool:
        """Preempt whoever came last until so many blocks are free; False when that was `job` itself."""
        while not self.pool.has_room(blocks):
            victim, _ = self.running.popitem()
            self._preempt(victim)
            if victim is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        self.preempted = self.again = True
        if job.base is None:
            self.partial = None
        else:
            self.decoding -= 1
            job.computed = job.base + self.step - 1
            job.tokens = job.computed + 1
        self.events.append(("preempt", job.id))
        self._free(job)
        job.base, job.due, job.finish, job.computed = None, -1, -1, 0
        self.waiting.appendleft(job)

    def _admit(self) -> None:
        if self.static and not self.running and not self.held:
            self.open = self._batch()
        while self.left and self.waiting and (self.open if self.static else len(self.running) < self.seats):
            job, cache = self.waiting[0], self.cache
            found = cache.find(self._keys(cache, job, (job.tokens - 1) // self.size)) if cache else []
            cached = len(found) * self.size
            tokens = job.tokens - cached
            if tokens > self.left:
                if not self.chunked:
                    self.again = True
                    return
                tokens = self.left
            whole, idle = self._whole(job), cache.idle(found) if cache and found else 0
            if not self.pool.has_room(whole - len(found) + idle):
                return  # until blocks are given back
            self._seat(job, found, idle)
            self._take(job, (whole if self.contiguous else -(-(cached + tokens) // self.size)) - len(found))
            self._compute(job, tokens)
        if not self.left:
            self.again = True

    def _batch(self) -> int:
        """How many of those who wait fit together at their full length."""
        blocks = accumulate(-(-job.end // self.size) for job in islice(self.waiting, self.seats))
        return sum(together <= self.pool.usable for together in blocks)

    def _whole(self, job: Job) -> int:
        """Blocks that must be free (or shared) before `job` may start."""
        return -(-((self.piece or job.end) if self.contiguous else job.tokens) // self.size)

    def _seat(self, job: Job, found: list[int], idle: int) -> None:
        self.waiting.popleft()
        self.open -= 1
        self.admitted += 1
        job.order = self.admitted
        self.running[job] = None
        if self.cache and found:
            self.cache.share(found)
        self.stored += idle * self.size
        job.blocks, job.findable, job.computed = found, len(found), len(found) * self.size
        self.events.append(("admit", job.id, *[job.computed, *found]))

    def _take(self, job: Job, blocks: int) -> None:
        if blocks > 0:
            taken = self.pool.take(blocks)
            job.blocks += taken
            self.events.append(("take", job.id, *taken))

    def _compute(self, job: Job, tokens: int) -> None:
        """The next piece of a prompt, or of prompt and answer once more after a preemption."""
        job.computed += tokens
        self.stored += tokens
        self.left -= tokens
        left = job.tokens - job.computed
        self.events.append(("prefill", job.id, tokens, left))
        if self.cache:
            self._make_findable(self.cache, job)  # in this very step: a request admitted next may share it
        if left:
            self.partial = job
        else:
            self.started.append(job)
            self.partial = None

    def _make_findable(self, cache: BlockPool, job: Job) -> None:
        full = job.computed // self.size
        cache.remember(job.blocks[job.findable : full], self._keys(cache, job, full)[job.findable : full])
        job.findable = full

    def _keys(self, cache: BlockPool, job: Job, number: int) -> list[int]:
        """The first keys of a request. Blocks with tokens it wrote itself, or that nobody told us, are its own."""
        for i in range(len(job.keys), number):
            end = (i + 1) * self.size
            content: Hashable = job.prompt[end - self.size : end] if end <= len(job.prompt) else (job.id, i)
            job.keys.append(cache.key(job.keys[-1] if job.keys else None, content))
        return job.keys[:number]

    def _start_decoding(self, job: Job) -> None:
        self.decoding += 1
        job.base = job.tokens - self.step
        job.finish = job.end - job.base
        self._note(self._ends, job.finish, job)
        job.due = len(job.blocks) * self.size + 1 - job.base
        if job.due <= job.finish:
            self._note(self._blocks_due, job.due, job)

    def _note(self, calendar: dict[int, list[Job]], step: int, job: Job) -> None:
        if step in calendar:
            calendar[step].append(job)
        else:
            calendar[step] = [job]
            heapq.heappush(self._agenda, step)

    def _finish(self) -> None:
        for job in sorted(self._ends.pop(self.step), key=in_order):
            if job.finish != self.step:
                continue  # it was preempted since
            self.again = True
            self.decoding -= 1
            job.computed = job.end
            del self.running[job]
            self.events.append(("finish", job.id))
            self.held.append(job)
        if not self.static or (not self.running and not self.open):
            for job in self.held:
                self._free(job)
            self.held = []

    def _free(self, job: Job) -> None:
        if self.cache:
            self._make_findable(self.cache, job)
        kept, shared = self.pool.release(job.blocks)
        self.stored -= job.computed - shared * self.size
        self.events.append(("free", job.id, *kept))
        job.blocks, job.findable = [], 0

    def _skip_quiet_steps(self) -> None:
        """On to the next step that needs all of `_one_step`. On the way blocks are handed out, as long as there are some."""
        self.step += 1
        if self.again or self.partial is not None or not self.running:
            return
        while True:
            while self._agenda[0] < self.step:
                heapq.heappop(self._agenda)
            until = self._agenda[0]
            arrival = self.coming[0].arrival if self.coming else until + 1
            if min(until, arrival) > self.step:
                self._tell_quiet_steps(min(until, arrival))
            if until in self._ends or arrival <= until or len(self._blocks_due[until]) > self.pool.free:
                return
            self.events = []
            self._extend()
            self.stored += self.decoding
            self._record(1, 0)
            self.step += 1

    def _tell_quiet_steps(self, until: int) -> None:
        steps, last = until - self.step, self.records[-1]
        if last["prefill"]:  # they differ from that one
            self.events = []
            self._record(steps, 0)
            self.records[-1]["tokens"] += self.decoding
        else:
            last["count"] += steps
        self.stored += self.decoding * steps
        self.step = until

    def _record(self, count: int, prefill: int) -> Record:
        blocks = self.pool.usable - self.pool.free
        stranded = self.pool.stranded(self._whole(self.waiting[0])) if self.waiting and self.contiguous else 0
        record: Record = {
            "step": self.step, "count": count, "running": len(self.running), "waiting": len(self.waiting),
            "prefill": prefill, "decode": self.decoding, "tokens": self.stored, "blocks": blocks, "blocks_after": blocks,
            "stranded": stranded, "events": self.events,
        }  # fmt: skip
        self.records.append(record)
        return record
