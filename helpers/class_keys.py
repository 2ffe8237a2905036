"""One key for each participant of a class (registered_keys is the server's side, and says how a key is kept).

No secret travels: a participant's own notebook makes the key when it first meets the class's server, keeps it at home for
its owner alone, and registers the key's digest in the class's folder. Whoever may add files there, which is its group,
has a key at once, also who comes late. People without an account here get keys that the instructor makes.
"""

import hashlib
import os
import pwd
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from helpers import connections, storage
from helpers.errors import WorkshopError
from helpers.registered_keys import BLOCKED, NAME, PERSON, digest_of, read

NO_FOLDER = "The class has no folder for keys: its instructor runs `python -m helpers.classroom open {}`."


class ClassKeyError(WorkshopError):
    """A key for the class's server that cannot be made, registered or taken back."""


@dataclass(frozen=True)
class Registered:
    """One registered key: its name, whose it is, when it was registered, and whether it was taken back."""

    name: str
    whose: str
    since: datetime
    blocked: bool


# --- a participant ---------------------------------------------------------------------------------------------------


def name_of_user() -> str:
    """The name under which this user's key is registered: by the uid, which the file system vouches for."""
    return f"u{os.getuid()}"


def kept_at(shared: Path) -> Path:
    """Where this user's key for a class is kept: a key for each class, so that no class's server learns another's."""
    return connections.home() / "class" / f"{hashlib.sha256(str(shared.absolute()).encode()).hexdigest()[:16]}.key"


def own(shared: Path) -> str:
    """This user's key for the class, made and registered if need be. Raises ClassKeyError."""
    path, keys = kept_at(shared), shared / "keys"
    if not os.path.isdir(keys):
        raise ClassKeyError(storage.shut_out(shared) or NO_FOLDER.format(shared))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with storage.alone(path.with_suffix(".lock")):
            key = _kept(path) or _make(path)
    except OSError as error:
        raise ClassKeyError(
            f"Your key cannot be kept at home. {storage.why(error, path.parent)} Then connect again."
        ) from None
    _register(keys, name_of_user(), key)
    return key


def why_refused(shared: Path) -> str:
    """Why a class's server refuses this user's key, which is registered."""
    return (
        f"It refuses your key, {name_of_user()}, though it is registered in {shared / 'keys'}: "
        "try again in a minute; if that does not help, show your instructor this line."
    )


def _kept(path: Path) -> str:
    """The key in a file; empty when there is none, or what is there is none of ours."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        key = path.read_text().strip()
        return key if key.startswith(f"{name_of_user()}.") and len(key) > 32 else ""
    return ""


def _make(path: Path) -> str:
    key = f"{name_of_user()}.{secrets.token_urlsafe(24)}"
    storage.put(path, key)
    return key


def _register(keys: Path, name: str, key: str) -> None:
    digest = digest_of(key.encode())
    kept = read(str(keys), name)
    if kept == digest:
        return
    if kept == BLOCKED:
        raise ClassKeyError(f"Your key {name} was taken back: ask your instructor for it.")
    try:
        storage.put(keys / name, f"{digest}\n", mode=0o644)  # the digest opens nothing
    except OSError as error:
        raise ClassKeyError(f"Your key cannot be registered. {_why(error, keys, name)} Then connect again.") from None


def _why(error: OSError, keys: Path, name: str) -> str:
    with suppress(OSError):
        if (keys / name).stat().st_uid != os.getuid():
            return (
                f"{keys / name} belongs to {user_name((keys / name).stat().st_uid)}. Ask your instructor to remove it."
            )
    return storage.why(error, keys)


# --- the instructor --------------------------------------------------------------------------------------------------


def hand_out(shared: Path, names: Sequence[str], folder: Path) -> list[Path]:
    """Make a key for each name: a file of the folder with mode 0600, whose one line a participant puts into VLLM_API_KEY.

    A name that has a key already gets a new one in its place. Raises ClassKeyError before anything is made.
    """
    for name in names:
        if not NAME.fullmatch(name) or PERSON.fullmatch(name):
            raise ClassKeyError(
                f"{name!r} is no name for a key: lower-case letters, digits and -, a letter first; u123 are people's own."
            )
    _need_to_own(shared)
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in names:
            key = f"{name}.{secrets.token_urlsafe(24)}"
            storage.put(folder / f"{name}.key", f"{key}\n")
            made.append(folder / f"{name}.key")
            _register(shared / "keys", name, key)
    except OSError as error:
        raise ClassKeyError(f"{storage.why(error, folder)} {len(made)} of {len(names)} keys are made.") from None
    return made


def block(shared: Path, name: str) -> None:
    """Take a key back: within seconds the server refuses it, and its owner cannot register another. Raises ClassKeyError.

    Requests that are being answered are answered to their end.
    """
    _need_to_own(shared)
    _name_of_one(shared, name)
    try:
        storage.put(shared / "keys" / name, f"{BLOCKED}\n", mode=0o644)
    except OSError as error:
        raise ClassKeyError(storage.why(error, shared / "keys")) from None


def allow(shared: Path, name: str) -> None:
    """Let somebody register again whose key was taken back. Raises ClassKeyError."""
    _need_to_own(shared)
    _name_of_one(shared, name)
    with suppress(FileNotFoundError):
        (shared / "keys" / name).unlink()


def registered(shared: Path) -> list[Registered]:
    """All keys of a class, those registered first at the top. Raises ClassKeyError."""
    _need_to_own(shared)
    found = []
    for path in (shared / "keys").iterdir():
        digest = read(str(path.parent), path.name)
        if digest:
            facts = path.lstat()
            person = PERSON.fullmatch(path.name)
            whose = user_name(int(person[1])) if person else "handed out"
            found.append(Registered(path.name, whose, datetime.fromtimestamp(facts.st_mtime), digest == BLOCKED))
    return sorted(found, key=lambda each: (each.since, each.name))


def _name_of_one(shared: Path, name: str) -> None:
    if not NAME.fullmatch(name) or not (shared / "keys" / name).is_file():
        raise ClassKeyError(f"No key is called {name}: `python -m helpers.classroom keys` lists them.")


def _need_to_own(shared: Path) -> None:
    keys = shared / "keys"
    if not os.path.isdir(keys):
        raise ClassKeyError(storage.shut_out(shared) or NO_FOLDER.format(shared))
    if keys.stat().st_uid != os.getuid():
        raise ClassKeyError(f"{keys} belongs to {user_name(keys.stat().st_uid)}, who alone can do this.")


def user_name(uid: int) -> str:
    """The login name of a uid, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
