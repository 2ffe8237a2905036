"""A learner's own progress: what it looks like, and sharing it with the class.

progress.picture()         every lesson, every check: passed, tried, seen, to come
progress.share()           let the class's instructor see it, under a pseudonym
progress.stop_sharing()    no longer, and remove what the class has of it
"""

import ast
import functools
import json
import os
import secrets
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from helpers import connections, progress_plots, progress_store, storage
from helpers.errors import WorkshopError
from helpers.progress_store import Event, Sharing

EXERCISES = Path(__file__).parent / "exercises"
#: Of a check, what came last in this list: it was never run, run as it stands, answered wrongly, passed.
TO_COME, SEEN, TRIED, PASSED = range(4)
LONGEST_NAME = 24
PSEUDONYMS = Path(__file__).parent / "data/pseudonyms.json"


class ProgressError(WorkshopError):
    """Progress that cannot be shared, with what to do about it."""


@functools.cache
def exercises() -> dict[str, list[str]]:
    """The names of every lesson's exercises, {"00": ["q1", "q2"], ...}, read from the modules without running them."""
    found = {}
    for path in sorted(EXERCISES.glob("lesson_*.py")):
        named = [
            target.id
            for statement in ast.parse(path.read_text()).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name) and target.id[0] == "q" and target.id[1:].isdigit()
        ]
        found[path.stem.rpartition("_")[2]] = sorted(named, key=lambda name: int(name[1:]))
    return found


def standing(events: set[Event]) -> dict[str, int]:
    """How each check stands, {"00.q1": PASSED, ...}, in the order of the course."""
    levels = {progress_store.SEEN: SEEN, progress_store.WRONG: TRIED, progress_store.RIGHT: PASSED}
    found = {f"{lesson}.{name}": TO_COME for lesson, names in exercises().items() for name in names}
    for event in events:
        if event.exercise in found:
            found[event.exercise] = max(found[event.exercise], levels[event.state])
    return found


def table() -> pd.DataFrame:
    """Your progress, a row for each lesson: checks, passed, wrong_tries."""
    events = progress_store.load()[0].events
    stands, rows = standing(events), {}
    for lesson, names in exercises().items():
        passed = sum(stands[f"{lesson}.{name}"] == PASSED for name in names)
        wrong = sum(e.state == progress_store.WRONG and e.exercise.startswith(f"{lesson}.") for e in events)
        rows[lesson] = {"checks": len(names), "passed": passed, "wrong_tries": wrong}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lesson")


def picture() -> Figure:
    """Your progress through all lessons; run it again for what has come since."""
    progress, problem = progress_store.load()
    if problem:
        print(problem)
    return progress_plots.own(standing(progress.events), exercises())


def share(name: str = "") -> str:
    """Let the class's instructor see which checks you have passed and how often you tried, never what you answered.

    They see a pseudonym, the `name` you give or one of ours. The file is in your account's name, as all that you write: whoever
    may list the folder could look it up. Returns a sentence. Raises ProgressError where there is no class to share it with.
    """
    folder = _box()
    before = progress_store.sharing()
    if before and before.file.parent == folder and not name:
        return f"You share your progress already, as {before.name}. {progress_store.keep()}".strip()
    name = _checked(name) or _pseudonym()
    chosen = Sharing(name, folder / f"{secrets.token_hex(8)}.json")
    try:
        storage.put(chosen.file, progress_store.Progress(set(), name).text(), mode=0o644)
        progress_store.set_sharing(chosen)
    except OSError as error:
        where = folder if not chosen.file.exists() else progress_store.path().parent
        chosen.file.unlink(missing_ok=True)
        raise ProgressError(f"Your progress is not shared: {storage.why(error, where)}") from None
    if before:
        _remove(before.file)
    problem = progress_store.keep()
    told = f"Your instructor sees you as {name}: the checks you pass and how often you try, not what you answer."
    return f"{told} {problem or progress_store.UNSHARE}"


def stop_sharing() -> str:
    """Remove what the class has of your progress; what you have yourself stays. Returns a sentence."""
    before = progress_store.sharing()
    if before is None:
        return "You do not share your progress."
    progress_store.set_sharing(None)
    problem = _remove(before.file)
    return problem or "Your progress is no longer shared; your own copy stays."


def _box() -> Path:
    shared = connections.class_folder()
    if shared is None:
        raise ProgressError(
            "There is no class here to share with: WORKSHOP_CLASS names its folder. Yours is kept at home."
        )
    if not os.path.isdir(shared / "progress"):
        raise ProgressError(
            storage.shut_out(shared)
            or f"The class in {shared} takes no progress yet: its instructor runs `python -m helpers.classroom open {shared}`."
        )
    return shared / "progress"


def _pseudonym() -> str:
    return " ".join(secrets.choice(words) for words in json.loads(PSEUDONYMS.read_text()).values())


def _checked(name: str) -> str:
    name = " ".join(str(name).split())
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ProgressError(f"The name {name[:40]!r} does not do: up to {LONGEST_NAME} letters, digits and blanks.")
    return name


def _remove(file: Path) -> str:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        return f"{file} is still there ({error.strerror}): ask your instructor to remove it."
    return ""
