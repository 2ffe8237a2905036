"""The class's shared folder: what is in it, who may do what there, and how it is made.

    servers/    the class's servers, one file each without a key      the instructor writes, the class reads
    keys/       a digest of everybody's key                           the class adds its own and sees no others
    progress/   the progress of those who share it                    the class adds its own and sees no others

keys and progress are drop boxes: mode 1730 with the class's group. The group may add files and cannot list them; the sticky
bit lets nobody but a file's owner and the folder's, the instructor, replace or remove it.
"""

import grp
import os
import stat
from pathlib import Path

from helpers import storage
from helpers.errors import WorkshopError

BOXES = ("keys", "progress")


class ClassFolderError(WorkshopError):
    """A folder that cannot be a class's, with what to do about it."""


def prepare(shared: Path, *, group: str = "", everybody: bool = False) -> str:
    """Make or mend a class's folder; returns the name of the group it is for, "" when it is for everybody.

    Without a group it takes that of the folder, or of the one above it, if nobody else may enter there: what class_install
    left. `everybody` lets in every account of this machine. Raises ClassFolderError.
    """
    try:
        shared.mkdir(parents=True, exist_ok=True)
        gid = -1 if everybody else _group(shared, group)
        _set(shared, 0o2750 if gid >= 0 else 0o755, gid)
        (shared / "servers").mkdir(exist_ok=True)
        _set(shared / "servers", 0o2750 if gid >= 0 else 0o755, gid)
        for box in BOXES:
            (shared / box).mkdir(exist_ok=True, mode=0o700)
            _set(shared / box, 0o1730 if gid >= 0 else 0o1733, gid)
    except OSError as error:
        where = Path(error.filename or shared)
        if isinstance(error, PermissionError) and where.exists() and where.stat().st_uid == os.getuid():
            raise ClassFolderError(
                f"You cannot give {where} to the group {group}, for you are not in it yourself."
            ) from None
        raise ClassFolderError(f"{storage.why(error, where)} The class's folder is the instructor's own.") from None
    return grp.getgrgid(gid).gr_name if gid >= 0 else ""


def _group(shared: Path, group: str) -> int:
    try:
        if group:
            return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ClassFolderError(f"There is no group {group} on this machine: `id` names yours.") from None
    for folder in (shared, shared.parent):
        facts = folder.stat()
        if not stat.S_IMODE(facts.st_mode) & 0o007:
            return facts.st_gid
    raise ClassFolderError(
        f"Every account of this machine may enter {shared}, and so could use the class's server. "
        "Name the class's group with --group, or say --everybody."
    )


def _set(folder: Path, mode: int, gid: int) -> None:
    if gid >= 0:
        os.chown(folder, -1, gid)
    os.chmod(folder, mode)


def clear(shared: Path) -> int:
    """Remove everybody's key and progress from a class's folder; returns how many files. Raises ClassFolderError."""
    removed = 0
    try:
        for box in BOXES:
            for path in (shared / box).iterdir():
                path.unlink()
                removed += 1
    except OSError as error:
        raise ClassFolderError(f"{removed} files are removed, and then: {error.filename}: {error.strerror}.") from None
    return removed
