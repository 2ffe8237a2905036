"""A first reading of a file of requests: how long it is, and which names come twice. Memory grows by 16 bytes a line."""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from helpers.batch_files import Input, InputError, LineError, Request

HASH_BYTES = 8


@dataclass(frozen=True)
class Survey:
    """What a first reading of a file finds: how many lines, how long the file is, and lines whose custom_id may not be new."""

    lines: int
    last: int
    suspects: frozenset[int]


def survey(source: Input, wanted: Callable[[int], bool] = lambda line: True) -> Survey:
    """Read the file once: 16 bytes of memory a line, whatever its length.

    `wanted` says of a line's number whether it counts. Names are compared by a hash of 8 bytes, so a suspect may be
    innocent; `unique` looks at the names themselves. Raises InputError when all lines are blank.
    """
    numbers, hashes, lines, last = array("Q"), array("Q"), 0, 0
    for item in source.read():
        last = item.line
        lines += wanted(item.line)
        if isinstance(item, Request):
            digest = hashlib.blake2b(item.custom_id.encode(), digest_size=HASH_BYTES).digest()
            numbers.append(item.line)
            hashes.append(int.from_bytes(digest))
    if not last:
        raise InputError(f"{source.path} holds nothing but blank lines. Put a request on each line.")
    values = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, np.uint64)
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    suspects = {numbers[order[place]] for place in {*same.tolist(), *(same + 1).tolist()}}
    return Survey(lines, last, frozenset(suspects))


def unique(items: Iterator[Request | LineError], suspects: frozenset[int]) -> Iterator[Request | LineError]:
    """The same, but a request whose custom_id stood on an earlier line becomes a LineError."""
    first: dict[str, int] = {}
    for item in items:
        if isinstance(item, Request) and item.line in suspects:
            earlier = first.setdefault(item.custom_id, item.line)
            if earlier != item.line:
                message = f"the custom_id {item.custom_id!r} stands on line {earlier} already; only that one is asked"
                item = LineError("duplicate_custom_id", message, line=item.line)
        yield item
