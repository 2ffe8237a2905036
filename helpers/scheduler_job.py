"""A request as the simulator's engine (helpers.scheduler_steps) keeps it while it is served."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helpers.scheduler import Request


class Job:
    """A request while it is served. While it decodes, its computed tokens at the end of a step are `base` + step."""

    __slots__ = ("arrival", "base", "blocks", "computed", "due", "end", "findable", "finish", "id", "keys", "order", "prompt", "tokens")  # fmt: skip

    def __init__(self, request: "Request"):
        self.id, self.arrival = request.id, request.arrival
        self.prompt = () if isinstance(request.prompt, int) else request.prompt
        self.tokens = request.prompt_tokens  # of the prompt and of what it has written so far
        self.end = request.cached_tokens  # computed tokens when it is done
        self.computed = self.order = 0
        self.base: int | None = None  # None: not decoding
        self.due = self.finish = -1  # the steps in which it needs its next block, and writes its last token
        self.blocks: list[int] = []
        self.keys: list[int] = []  # of its full blocks, for prefix caching
        self.findable = 0  # how many of its blocks others can find
