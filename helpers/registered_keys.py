"""The server's side of a class's keys (class_keys is the participants' and the instructor's): is this one registered?

A key is NAME.SECRET. The class's folder `keys` holds a file of that NAME with the key's SHA-256, so that nothing there
opens anything. Participants put theirs there themselves: the folder's group may add files, and its sticky bit lets nobody
touch another's. A name that begins with u is a person's uid, and counts only if the file belongs to that uid, or to the
folder's owner: the instructor, who so blocks a person, and who hands out keys of other names.

Loaded by the server itself: the standard library alone.
"""

import asyncio
import hashlib
import os
import re
import secrets
import stat
import time

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
PERSON = re.compile(r"u(\d+)")
BLOCKED = "blocked"
#: Seconds for which what was read holds: so long a key that was taken back may still be used.
FRESH = 5.0
REMEMBERED = 4096


def digest_of(key: bytes) -> str:
    """What the class's folder keeps of a key. Keys are random, so that no slow hash is needed."""
    return hashlib.sha256(key).hexdigest()


def read(folder: str, name: str) -> str:
    """The digest registered under a name; empty when there is none that counts.

    Files here are written by others: no link is followed, no pipe waited for, no more read than a digest has.
    """
    person = PERSON.fullmatch(name)
    if not NAME.fullmatch(name):
        return ""
    try:
        trusted = {os.stat(folder).st_uid, *([int(person[1]), *_hidden_owner()] if person else [])}
        handle = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in trusted:
                return ""
            return file.read(128).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _hidden_owner() -> list[int]:
    """In a container with users of its own (unprivileged Apptainer) everybody else's files seem to be this one's."""
    with open("/proc/self/uid_map") as users:
        if users.read().split() == ["0", "0", "4294967295"]:
            return []
    with open("/proc/sys/fs/overflowuid") as number:
        return [int(number.read())]


class RegisteredKeys:
    """Which keys a class's folder knows, read anew every few seconds, in a thread: shared storage may be slow."""

    def __init__(self, folder: str):
        self._folder = folder
        self._known: dict[str, tuple[float, str]] = {}

    async def hold(self, key: bytes) -> bool:
        """Whether this key is registered."""
        name, dot, _ = key.decode("latin-1").partition(".")
        if not dot or not NAME.fullmatch(name):
            return False
        digest = digest_of(key)
        read_at, kept = self._known.get(name, (float("-inf"), ""))
        if time.monotonic() - read_at > FRESH or not _same(digest, kept):  # it may have just been registered
            kept = await asyncio.to_thread(read, self._folder, name)
            if len(self._known) >= REMEMBERED:  # names that somebody makes up
                self._known.clear()
            self._known[name] = (time.monotonic(), kept)
        return _same(digest, kept)


def _same(digest: str, kept: str) -> bool:
    return secrets.compare_digest(digest.encode(), kept.encode())
