"""Schedules: minutes add up, what they name exists, and they agree with lessons, labs and slides."""

import json
import re
from itertools import accumulate

import pytest

from helpers import schedule, slides

ROOT = schedule.ROOT
SCHEDULES = schedule.load()
ROWS = [pytest.param(row, id=f"{name}: {row.what}") for name, one in SCHEDULES.items() for row in one.rows]
TIME = re.compile(r"\*\*Time\.\*\* (\d+) minutes")


def text_of(row: schedule.Row) -> str:
    if row.lab:
        return (ROOT / "labs" / f"{row.lab}.md").read_text()
    cells = json.loads((ROOT / "notebooks" / f"{row.notebook}.ipynb").read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("row", [p for p in ROWS if p.values[0].notebook or p.values[0].lab])
def test_a_lesson_exists_and_has_its_time(row):
    """A whole one gets the minutes that it asks for; parts of one exist, and get less than the whole."""
    text = text_of(row)
    asked = int(TIME.search(text)[1])
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert [part for part in row.parts if part not in headings] == []
    assert row.minutes < asked if row.parts else row.minutes == asked


def test_slides_take_what_their_notes_say():
    decks = slides.decks()
    blocks = [[slide for slide in deck.slides if slide.core] for name, deck in decks.items() if name != slides.CLASS]
    cover = len(decks[slides.CLASS].slides) - sum(map(len, blocks))
    minutes = [sum(s.minutes for s in part) for part in (decks[slides.CLASS].slides[:cover], *blocks)]
    for row in (row for one in SCHEDULES.values() for row in one.rows if row.slides):
        expected = sum(minutes[block] for block in row.blocks) if row.blocks else decks[row.slides].minutes
        assert row.minutes == expected, row.what
        ends = list(accumulate(map(len, blocks), initial=cover))  # the cover's last page, and each block's
        if row.blocks:
            begins = ends[row.blocks[0] - 1] + 1 if row.blocks[0] else 1
            assert row.pages == (begins, ends[row.blocks[-1]]), row.what


def test_every_break_is_in_time():
    """Nobody sits for more than two hours and a half."""
    for one in SCHEDULES.values():
        sitting = 0
        for row in one.rows:
            sitting = 0 if row.pause else sitting + row.minutes
            assert sitting <= 150, one.name


def test_minutes_that_do_not_add_up_are_refused(tmp_path):
    path = tmp_path / "schedules.toml"
    path.write_text('[x]\ntitle = "x"\nminutes = 20\nfor = "y"\n[[x.rows]]\nminutes = 15\nwhat = "talk"\n')
    with pytest.raises(schedule.ScheduleError, match="add up to 15 minutes, and it has 20"):
        schedule.load(path)


@pytest.mark.parametrize("line, said", [('speaker = "me"', "speaker"), ('slides = "a"\nlab = "b"', "more than one")])
def test_rows_that_say_what_nobody_reads_are_refused(tmp_path, line, said):
    path = tmp_path / "schedules.toml"
    path.write_text(f'[x]\ntitle = "x"\nminutes = 5\nfor = "y"\n[[x.rows]]\nminutes = 5\nwhat = "talk"\n{line}\n')
    with pytest.raises(schedule.ScheduleError, match=said):
        schedule.load(path)


def test_the_guide_is_written_from_the_file():
    text = schedule.GUIDE.read_text()
    assert schedule.with_plans(text) == text, "python -m helpers.schedule --write"
    with pytest.raises(schedule.ScheduleError, match="no place"):
        schedule.with_plans("nothing")


def test_the_command(capsys):
    assert schedule.main(["half-day", "--start", "13:30"]) == 0
    said = capsys.readouterr().out
    assert "| 13:30 | 15 | Start here | `notebooks/00_start_here.ipynb` |" in said and "late" not in said
    assert schedule.main([]) == 0 and "a seminar" in capsys.readouterr().out
    assert schedule.main(["weekend"]) == 1 and "no schedule 'weekend'" in capsys.readouterr().err
    assert schedule.main(["day", "--start", "nine"]) == 1 and "09:00" in capsys.readouterr().err
