"""For tests of what accounts may do to each other's files: a block run as another user, and a disk without room."""

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")


def run_as(uid: int, groups: list[int], action: Callable[[], object]) -> object:
    """What `action` returns, or the exception it raises, in a child process with this uid and these groups."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups(groups)
            os.setresgid(groups[0], groups[0], groups[0])
            os.setresuid(uid, uid, uid)
            answer = action()
        except BaseException as error:
            answer = error
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(told)


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """No file of this process may have more bytes: writing fails as on a disk without room, with EFBIG for ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
