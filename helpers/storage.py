"""Small files that several processes write: whole or not at all, and the sentence for storage that fails."""

import errno
import fcntl
import grp
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ASK = "Ask your instructor to have you added to the class's group."


def put(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file at once: whoever reads meanwhile sees the old one or the new one. Raises OSError, and leaves no draft.

    Its mode is the one given, whatever the umask; there is no moment at which more people can read it.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(handle, mode)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def read_regular(path: Path, most: int) -> tuple[str, os.stat_result]:
    """The text of a file that somebody else may have put there, at most so many bytes, and what the system says of it.

    Raises OSError for what is no plain file (a link, a pipe: opening one could lead elsewhere or wait for ever) or is
    larger, and UnicodeDecodeError, a ValueError, for what is no text.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
            raise OSError(errno.EINVAL, "no plain file of the size it should have", str(path))
        return file.read(most).decode(), facts


@contextmanager
def alone(path: Path, patience: float = 2.0) -> Iterator[bool]:
    """Hold a lock on a file of this name while the block runs; yields False where it could not be had.

    A file system without locks, or another process that keeps it for longer than `patience` seconds, stops nobody.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _locked(handle, patience)
    finally:
        os.close(handle)


def _locked(handle: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:
            return False


def why(error: OSError, folder: Path) -> str:
    """One sentence with the mend, for an error while writing into a folder."""
    if error.errno in FULL:
        return f"{folder} has no room left: the disk is full, or your quota used up. Free some space there."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"You may not write to {folder}{_whose(folder)}. {ASK}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{folder} is not there."
    return f"{folder} cannot be written ({error.strerror})."


def shut_out(folder: Path) -> str:
    """One sentence with the mend if the folder is there and this account may not enter it, else ""."""
    if os.access(folder, os.X_OK) or not os.path.isdir(folder):
        return ""
    return f"You may not enter {folder}{_whose(folder)}. {ASK}"


def _whose(folder: Path) -> str:
    """The folder's group and one's own, by number: what a person in charge has to put together."""
    with suppress(OSError):
        groups = sorted({os.getgid(), *os.getgroups()})
        return f", which belongs to the group {group_name(folder.stat().st_gid)}; you are in {', '.join(map(group_name, groups))}"
    return ""


def group_name(number: int) -> str:
    """A group's name by its number; the number where it has none here."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
