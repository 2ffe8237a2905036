"""Who holds which block of the KV cache: pages taken one by one, or one contiguous piece for each request.

Block 0 of the pool is never handed out, as in vLLM, whose block 0 is the *null block*: 17 blocks hold 16 blocks of tokens.
Both pools number blocks alike and answer the same questions, so that the scheduler does not care which it has.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class BlockPool:
    """Pages. Any free block serves; a full block may be shared, and stays findable after its owners have left.

    Free blocks are handed out in vLLM's order: the most recently freed that hold nothing worth keeping first, then the
    cached ones, least recently used first (v1/core/block_pool.py).
    """

    def __init__(self, blocks: int, caching: bool = False):
        self.usable = self.free = blocks - 1
        self.caching = caching
        self._empty = list(range(blocks - 1, 0, -1))  # a stack: its end is handed out first
        self._reusable: OrderedDict[int, None] = OrderedDict()  # free, but their content can still be found
        self._owners = [0] * blocks
        self._key_of: dict[int, int] = {}
        # One content may fill several blocks: vLLM does not merge them.
        self._blocks_of: dict[int, dict[int, None]] = {}
        self._keys: dict[tuple[int | None, Hashable], int] = {}

    def has_room(self, blocks: int) -> bool:
        """Whether so many blocks can be taken."""
        return blocks <= self.free

    def stranded(self, blocks: int) -> int:
        """Free blocks that are no use to a request for `blocks`, for want of neighbours: none, where any block serves."""
        return 0

    def take(self, blocks: int) -> list[int]:
        """Hand out so many blocks, for which there must be room; the content of cached ones is forgotten."""
        self.free -= blocks
        plain = min(blocks, len(self._empty))
        taken = self._empty[: -plain - 1 : -1]
        del self._empty[len(self._empty) - plain :]
        if self.caching:
            for _ in range(blocks - plain):
                block, _ = self._reusable.popitem(last=False)
                self._forget(block)
                taken.append(block)
            for block in taken:
                self._owners[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> tuple[list[int], int]:
        """One owner leaves. Returns the free blocks whose content stays findable, and how many blocks others still use."""
        if not self.caching:
            self._empty += blocks
            self.free += len(blocks)
            return [], 0
        kept, plain, shared = [], [], 0
        for block in reversed(blocks):  # the end of a text is the first to be overwritten
            self._owners[block] -= 1
            if self._owners[block]:
                shared += 1
            elif block in self._key_of:
                self._reusable[block] = None
                kept.append(block)
            else:
                plain.append(block)
        self._empty += reversed(plain)
        self.free += len(plain) + len(kept)
        return kept, shared

    def key(self, parent: int | None, content: Hashable) -> int:
        """A number for all tokens up to the end of a block: equal numbers, equal texts. `parent`: of the block before."""
        return self._keys.setdefault((parent, content), len(self._keys))

    def find(self, keys: Sequence[int]) -> list[int]:
        """Blocks that hold the longest beginning of this text."""
        found = []
        for key in keys:
            if not (blocks := self._blocks_of.get(key)):
                break
            found.append(next(iter(blocks)))
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody owns: using them takes them from the free ones."""
        return sum(not self._owners[block] for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """One more owner for each of these blocks."""
        for block in blocks:
            if not self._owners[block]:
                del self._reusable[block]
                self.free -= 1
            self._owners[block] += 1

    def remember(self, blocks: Sequence[int], keys: Sequence[int]) -> None:
        """These blocks are full: let others find them."""
        for block, key in zip(blocks, keys, strict=True):
            self._key_of[block] = key
            self._blocks_of.setdefault(key, {})[block] = None

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block)
        del self._blocks_of[key][block]
        if not self._blocks_of[key]:
            del self._blocks_of[key]


class ContiguousPool:
    """One piece of neighbouring blocks for each request, the first hole that is long enough."""

    def __init__(self, blocks: int):
        self.usable = self.free = blocks - 1
        self._holes = [(1, blocks - 1)]  # (first block, length), by first block, never touching each other

    def has_room(self, blocks: int) -> bool:
        """Whether so many blocks lie side by side."""
        return any(length >= blocks for _, length in self._holes)

    def stranded(self, blocks: int) -> int:
        """Free blocks that would do for a request for `blocks` if they lay side by side: external fragmentation."""
        return self.free if blocks <= self.free and not self.has_room(blocks) else 0

    def take(self, blocks: int) -> list[int]:
        """Hand out so many neighbouring blocks, for which there must be room."""
        at = next(i for i, (_, length) in enumerate(self._holes) if length >= blocks)
        first, length = self._holes[at]
        self._holes[at : at + 1] = [(first + blocks, length - blocks)] if length > blocks else []
        self.free -= blocks
        return list(range(first, first + blocks))

    def release(self, blocks: Sequence[int]) -> tuple[list[int], int]:
        """The piece is free again. Nothing of it stays findable and nothing is shared: always ([], 0)."""
        self.free += len(blocks)
        joined: list[tuple[int, int]] = []
        for first, length in sorted([*self._holes, (blocks[0], len(blocks))]):
            if joined and sum(joined[-1]) == first:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((first, length))
        self._holes = joined
        return [], 0
