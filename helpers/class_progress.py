"""A class's progress, for its instructor: read from the files that participants share, and who is stuck where."""

import stat
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from helpers import progress_store, storage
from helpers.errors import WorkshopError
from helpers.progress import PASSED, exercises, standing
from helpers.progress_plots import Row
from helpers.progress_store import LARGEST, RIGHT, WRONG, Event

MINUTE = 60
Mark = tuple[int, ...]  # inode, bytes and time of a file: another when it was written anew


class ClassProgressError(WorkshopError):
    """A class's progress that cannot be read, with what to do about it."""


@dataclass(frozen=True)
class Participant:
    """One who shares their progress: a pseudonym and the events, oldest first."""

    name: str
    events: tuple[Event, ...]

    @property
    def last(self) -> float:
        """When a check last said something, in seconds since 1970; 0 when none has."""
        return self.events[-1].time if self.events else 0.0


@dataclass(frozen=True)
class Stuck:
    """Somebody who gets no further: at which check, after how many wrong tries, for how many minutes."""

    name: str
    exercise: str
    tries: int
    minutes: float

    def __str__(self) -> str:
        tries = f"{self.tries} wrong tr{'y' if self.tries == 1 else 'ies'}" if self.tries else "no answer"
        return f"{self.name}: {self.exercise}, {tries} in {self.minutes:.0f} min"


@dataclass
class Reader:
    """Reads a class's folder again and again; a file that has not changed is not read anew."""

    folder: Path
    _seen: dict[str, tuple[Mark, Participant | None]] = field(default_factory=dict)

    def read(self) -> list[Participant]:
        """Everybody who shares progress with this class, by name. `unreadable` names files that are none.

        Raises ClassProgressError when the folder cannot be listed.
        """
        try:
            paths = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        except PermissionError:
            raise ClassProgressError(
                f"You may not list {self.folder}: a class's progress is for the instructor who opened it."
            ) from None
        except OSError as error:
            raise ClassProgressError(
                f"{self.folder} cannot be read ({error.strerror}). `python -m helpers.classroom open` makes it."
            ) from None
        self._seen = {path.name: self._entry(path) for path in paths}
        return _by_name(found for _, found in self._seen.values() if found)

    @property
    def unreadable(self) -> list[str]:
        """Files that are no progress, by their names; they are left out."""
        return [name for name, (_, found) in self._seen.items() if found is None]

    def _entry(self, path: Path) -> tuple[Mark, Participant | None]:
        try:
            facts = path.lstat()
            mark = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
            known = self._seen.get(path.name)
            return known if known and known[0] == mark else (mark, _participant(path, facts.st_mode))
        except OSError:
            return (), None


def _participant(path: Path, mode: int) -> Participant | None:
    """What a file says; None when it is none of ours. Participants write these files: nothing in them is trusted."""
    if not stat.S_ISREG(mode):
        return None
    try:
        found = progress_store.parse(storage.read_regular(path, LARGEST)[0])
    except (OSError, ValueError):
        return None
    name = "".join(letter for letter in found.name if letter.isprintable())[:24].strip() or path.stem[:8]
    return Participant(name, tuple(sorted(progress_store.trimmed(found.events))))


def _by_name(found: Iterable[Participant]) -> list[Participant]:
    """In the order of their names; the second of a name gets a number."""
    taken: Counter[str] = Counter()
    named = []
    for participant in found:
        taken[participant.name] += 1
        again = f" {taken[participant.name]}" if taken[participant.name] > 1 else ""
        named.append(Participant(f"{participant.name}{again}", participant.events))
    return sorted(named, key=lambda participant: participant.name.lower())


# --- what it says ----------------------------------------------------------------------------------------------------


def checks(lesson: str = "") -> list[str]:
    """All checks of the course, or of one lesson, in its order: 00.q1, 00.q2, ..."""
    return [f"{each}.{name}" for each, names in exercises().items() for name in names if lesson in ("", each)]


def stuck(
    participants: Sequence[Participant], now: float, *, tries: int = 3, minutes: float = 10, gone: float = 60
) -> list[Stuck]:
    """Those who get no further at the check they were last at, and have not passed: the longest first.

    They have answered it wrongly `tries` times, or have been at it for `minutes` without passing any. Who has done nothing for
    `gone` minutes has left, or listens; they are left out.
    """
    found = [_stuck(each, min(now, time.time() + 1), tries, minutes) for each in participants if each.events]
    last = {each.name: each.last for each in participants}
    return sorted(
        (each for each in found if each and now - last[each.name] < gone * MINUTE), key=lambda each: -each.minutes
    )


def _stuck(participant: Participant, now: float, tries: int, minutes: float) -> Stuck | None:
    at = participant.events[-1].exercise
    here = [event for event in participant.events if event.exercise == at]
    if any(event.state == RIGHT for event in here):
        return None
    passed = [event.time for event in participant.events if event.state == RIGHT]
    since = (now - max(here[0].time, *passed[-1:])) / MINUTE if passed else (now - here[0].time) / MINUTE
    wrong = sum(event.state == WRONG for event in here)
    return Stuck(participant.name, at, wrong, max(since, 0.0)) if wrong >= tries or since >= minutes else None


def active(participants: Sequence[Participant], now: float, minutes: float = 10) -> int:
    """How many have run a check in the last so many minutes."""
    return sum(now - each.last < minutes * MINUTE for each in participants)


def rows(participants: Sequence[Participant], columns: Sequence[str], stuck_at: dict[str, str]) -> list[Row]:
    """The rows of the class's picture, who has passed least at the top: there help is wanted."""
    made = []
    for each in participants:
        stands = standing(set(each.events))
        wrong = Counter(event.exercise for event in each.events if event.state == WRONG)
        at = stuck_at.get(each.name)
        place = columns.index(at) if at in columns else None
        made.append(Row(each.name, [stands[check] for check in columns], [wrong[check] for check in columns], place))
    return sorted(made, key=lambda row: (sum(level == PASSED for level in row.levels), row.name.lower()))


def table(participants: Sequence[Participant]) -> pd.DataFrame:
    """A row for each participant and check that was seen: name, check, passed, wrong_tries, first_seen, passed_at (UTC)."""
    made = []
    for each in participants:
        for check in dict.fromkeys(event.exercise for event in each.events):
            here = [event for event in each.events if event.exercise == check]
            passed = [event.time for event in here if event.state == RIGHT]
            wrong = sum(event.state == WRONG for event in here)
            made.append((each.name, check, bool(passed), wrong, here[0].time, passed[0] if passed else None))
    columns = ["name", "check", "passed", "wrong_tries", "first_seen", "passed_at"]
    found = pd.DataFrame(made, columns=columns)
    for column in ("first_seen", "passed_at"):
        found[column] = pd.to_datetime(found[column].astype(float), unit="s", utc=True).dt.floor("s")
    return found
