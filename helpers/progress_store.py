"""A learner's progress as events in a file: which check said what, and when.

Everybody's is kept at home (`$WORKSHOP_HOME/progress.json`). Who shares it with a class has the same events, under a
pseudonym, in one file of the class's folder. Neither needs a server. A file is replaced whole, with all events that it had
and all that this process knows: two notebooks at once lose nothing, and what could not be written comes with the next write.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers import connections, storage

SEEN, WRONG, RIGHT = STATES = ("seen", "wrong", "right")
EXERCISE = re.compile(r"\d\db?\.q\d{1,2}")
MOST_WRONG = 50  # of one exercise: more tell nothing new
LARGEST = 2**20  # bytes of a file; the whole course done with 50 wrong tries at each check takes half of that
VERSION = 1
UNSHARE = "`progress.stop_sharing()` ends the sharing."


@dataclass(frozen=True, order=True)
class Event:
    """A check said something: `time` in seconds since 1970, `exercise` as in 03.q2, `state` one of STATES."""

    time: float
    exercise: str
    state: str


@dataclass
class Progress:
    """The events of one learner, and the name under which they are shared."""

    events: set[Event] = field(default_factory=set)
    name: str = ""

    def text(self) -> str:
        """What a file of it holds: JSON, with no more events than `trimmed` keeps."""
        events = [[event.time, event.exercise, event.state] for event in sorted(trimmed(self.events))]
        return json.dumps({"version": VERSION, "name": self.name, "events": events})


@dataclass(frozen=True)
class Sharing:
    """Under which name progress is shared, and in which file."""

    name: str
    file: Path


#: What this process has seen, whether or not it could be written.
_ours: set[Event] = set()


def path() -> Path:
    """Where this learner's own progress is kept."""
    return connections.home() / "progress.json"


def parse(text: str) -> Progress:
    """Progress from the text of a file. Raises ValueError when it is none; an event that is none is left out."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict) or not isinstance(data.get("events"), list):
        raise ValueError("not a progress file")
    name = data.get("name")
    return Progress(
        {event for entry in data["events"] if (event := _event(entry))}, name if isinstance(name, str) else ""
    )


def _event(entry: object) -> Event | None:
    if not isinstance(entry, list) or len(entry) != 3:
        return None
    at, exercise, state = entry
    is_time = isinstance(at, (int, float)) and 0 <= at < 2**40  # also no NaN, and nothing too large for a date
    is_known = isinstance(exercise, str) and EXERCISE.fullmatch(exercise) and state in STATES
    return Event(float(at), exercise, state) if is_time and is_known else None


def load() -> tuple[Progress, str]:
    """This learner's progress, with this process's own events, and a sentence if the file could not be read.

    A file that is none is kept beside it, so that nothing is overwritten.
    """
    found, problem = _read(path())
    return Progress(found.events | _ours), problem


def _read(file: Path) -> tuple[Progress, str]:
    try:
        return parse(storage.read_regular(file, LARGEST)[0]), ""
    except FileNotFoundError:
        return Progress(), ""
    except ValueError:
        aside = file.with_name(f"{file.stem}-unreadable-{time.strftime('%Y%m%d-%H%M%S')}.json")
        with suppress(OSError):
            file.replace(aside)
            return Progress(), f"Your progress file could not be read: it is kept as {aside}, and a new one is begun."
        return Progress(), f"Your progress file {file} cannot be read: remove it."
    except OSError as error:
        return Progress(), f"Your progress file {file} cannot be read ({error.strerror})."


def sharing() -> Sharing | None:
    """How progress is shared, None when it is not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(path().with_name("sharing.json").read_text())
        return Sharing(str(data["name"]), Path(data["file"]))
    return None


def set_sharing(chosen: Sharing | None) -> None:
    """Remember how progress is shared from now on. Raises OSError."""
    file = path().with_name("sharing.json")
    if chosen is None:
        file.unlink(missing_ok=True)
    else:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        storage.put(file, json.dumps({"name": chosen.name, "file": str(chosen.file)}))


def record(exercise: str, state: str) -> str:
    """Note what a check said; returns "" or a sentence on what could not be kept. Never raises an OSError.

    An exercise is seen once and passed once; of wrong tries so many are kept that one sees where somebody is stuck.
    """
    most = MOST_WRONG if state == WRONG else 1
    if sum((event.exercise, event.state) == (exercise, state) for event in _ours) >= most:
        return ""
    _ours.add(Event(round(time.time(), 6), exercise, state))
    return keep()


def keep() -> str:
    """Write what is known, at home and for the class; returns "" or the sentence on what went wrong.

    The events stay in this process, so that the next one that is kept brings them along.
    """
    problems, progress = [], Progress(set(_ours))
    try:
        path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with storage.alone(path().with_suffix(".lock")):
            progress, problem = load()
            problems.append(problem)
            problems.append(_publish(progress))
            storage.put(path(), progress.text())
    except OSError as error:
        problems.append(
            f"Your progress is not kept yet: {storage.why(error, path().parent)} It is written with the next check, "
            "as long as this notebook's kernel runs."
        )
    return " ".join(filter(None, problems))


def _publish(progress: Progress) -> str:
    """The class's copy, where one is kept; a sentence if it could not be written. What it had comes to `progress`."""
    if (shared := sharing()) is None:
        return ""
    found, _ = _read(shared.file)
    progress.events |= found.events
    try:
        # 0644, in a folder that only the instructor can list
        storage.put(shared.file, Progress(progress.events, shared.name).text(), mode=0o644)
    except OSError as error:
        return (
            f"Your class does not see this yet: {storage.why(error, shared.file.parent)} Yours is not lost. {UNSHARE}"
        )
    return ""


def trimmed(events: Iterable[Event]) -> set[Event]:
    """The first `seen` and the first `right` of each exercise, and its first MOST_WRONG wrong tries."""
    kept = set()
    counted: Counter[tuple[str, str]] = Counter()
    for event in sorted(events):
        key = event.exercise, event.state
        counted[key] += 1
        if counted[key] <= (MOST_WRONG if event.state == WRONG else 1):
            kept.add(event)
    return kept


def name_of(exercise: object) -> str:
    """The name of an exercise of a lesson, as in 03.q2: by its place in its module; "" for any other."""
    for module, content in list(sys.modules.items()):
        if module.startswith("helpers.exercises.lesson_"):
            for name, value in vars(content).items():
                if value is exercise and re.fullmatch(r"q\d+", name):
                    return f"{module.rpartition('_')[2]}.{name}"
    return ""
