"""What a class has done, as files to keep: a table for a spreadsheet, and everything for whoever wants to compute on."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers import class_progress, storage
from helpers.class_progress import ClassProgressError, Participant


def export(participants: Sequence[Participant], server: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Write class-DATE.csv and class-DATE.json into a folder; returns their paths. Only you can read them.

    The CSV is class_progress.table: a row for each participant and check. The JSON has every event and what the server did,
    a record for each moment of `server` (class_server.ServerHistory.frame). A file that is there already is never replaced.
    Raises ClassProgressError where they cannot be written.
    """
    at = time.time()
    stem = _free(folder, time.strftime("class-%Y%m%d-%H%M%S", time.localtime(at)))
    texts = {".csv": _csv(participants), ".json": _json(participants, server, at)}
    made = []
    try:
        for ending, text in texts.items():
            path = folder / f"{stem}{ending}"
            storage.put(path, text)
            made.append(path)
    except OSError as error:
        for path in made:
            path.unlink()
        raise ClassProgressError(f"Nothing is exported: {storage.why(error, folder)}") from None
    return made[0], made[1]


def _csv(participants: Sequence[Participant]) -> str:
    table = class_progress.table(participants)
    # People choose their names, and a spreadsheet would take one of these beginnings for a formula.
    table["name"] = [f"'{name}" if name.startswith(("=", "+", "-", "@")) else name for name in table["name"]]
    text: str = table.to_csv(index=False)
    return text


def _json(participants: Sequence[Participant], server: pd.DataFrame, at: float) -> str:
    """Valid JSON: what is no number is null. Times are seconds since 1970, those of the server minutes before `at`."""
    moments = json.loads(server.reset_index().to_json(orient="records", double_precision=4))
    everybody = [
        {"name": each.name, "events": [[event.time, event.exercise, event.state] for event in each.events]}
        for each in participants
    ]
    return json.dumps({"version": 1, "exported_at": round(at, 3), "participants": everybody, "server": moments})


def _free(folder: Path, stem: str) -> str:
    names = (f"{stem}{f'-{number}' if number else ''}" for number in range(10_000))
    return next(name for name in names if not os.path.lexists(folder / f"{name}.csv"))
