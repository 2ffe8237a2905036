"""The workshop's schedules, from labs/schedules.toml: the participants' agenda, and the instructor's with what to cut.

python -m helpers.schedule                              # which there are
python -m helpers.schedule half-day --start 13:30       # the participants' agenda, as Markdown
python -m helpers.schedule day --instructor             # with slides, parts, and what to leave out when late
python -m helpers.schedule --write                      # renew the tables in labs/INSTRUCTOR.md
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from helpers.errors import WorkshopError

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "labs" / "schedules.toml"
GUIDE = ROOT / "labs" / "INSTRUCTOR.md"
START = "09:00"


class ScheduleError(WorkshopError):
    """A schedule that does not exist, or that says what cannot be."""


@dataclass(frozen=True)
class Row:
    """One entry: minutes, what, and at most one of slides, notebook and lab; `parts` are headings, all of it if empty.

    `pages` are the first and the last of the slides' pages that the row's `blocks` have, for a speaker who must know where to stop.
    """

    minutes: int
    what: str
    slides: str = ""
    blocks: tuple[int, ...] = ()
    pages: tuple[int, ...] = ()
    notebook: str = ""
    lab: str = ""
    parts: tuple[str, ...] = ()
    pause: bool = False
    late: str = ""

    @property
    def material(self) -> str:
        """What people have in front of them, as Markdown for a page in labs/."""
        if self.slides:
            return f"slides `{self.slides}`" + (f", {self.pages[0]} to {self.pages[-1]}" if self.pages else "")
        if self.notebook:
            where = ": " + "; ".join(self.parts) if self.parts else ""
            return f"[{self.notebook}](../notebooks/{self.notebook}.ipynb){where}"
        return f"[{self.lab}]({self.lab}.md)" if self.lab else ""


@dataclass(frozen=True)
class Schedule:
    """A class of so many minutes: `name` for the command, `title` and `purpose` for people, rows in their order."""

    name: str
    title: str
    minutes: int
    purpose: str
    rows: tuple[Row, ...] = field(default_factory=tuple)


def load(path: Path = FILE) -> dict[str, Schedule]:
    """The schedules of a file by name. Raises ScheduleError for a row that names unknown keys, or minutes that do not add up."""
    return {name: _schedule(name, told) for name, told in tomllib.loads(path.read_text()).items()}


def _schedule(name: str, told: dict[str, Any]) -> Schedule:
    rows = tuple(_row(name, row) for row in told["rows"])
    if (total := sum(row.minutes for row in rows)) != told["minutes"]:
        raise ScheduleError(
            f"The rows of {name!r} add up to {total} minutes, and it has {told['minutes']}: change a row."
        )
    return Schedule(name, told["title"], told["minutes"], told["for"], rows)


def _row(name: str, told: dict[str, Any]) -> Row:
    values: dict[str, Any] = {
        "pause" if key == "break" else key: tuple(v) if isinstance(v, list) else v for key, v in told.items()
    }
    if unknown := values.keys() - Row.__dataclass_fields__.keys():
        raise ScheduleError(
            f"A row of {name!r} says {', '.join(sorted(unknown))}, which nothing reads: correct the word."
        )
    if sum(bool(values.get(key)) for key in ("slides", "notebook", "lab")) > 1:
        raise ScheduleError(f"{values['what']!r} in {name!r} has more than one material: make it two rows.")
    return Row(**values)


def find(name: str) -> Schedule:
    """The schedule of a name. Raises ScheduleError, which lists the names."""
    known = load()
    if name not in known:
        raise ScheduleError(f"There is no schedule {name!r}: choose {', '.join(known)}.")
    return known[name]


def times(schedule: Schedule, start: str = START) -> list[str]:
    """When each row begins, as 09:05. Raises ScheduleError for a start that is no time of day."""
    try:
        clock = datetime.strptime(start, "%H:%M")
    except ValueError as error:
        raise ScheduleError(f"{start!r} is no time of day: write it as 09:00.") from error
    begun = []
    for row in schedule.rows:
        begun.append(clock.strftime("%H:%M"))
        clock += timedelta(minutes=row.minutes)
    return begun


def agenda(schedule: Schedule, start: str = START) -> str:
    """The participants' agenda as Markdown: when, what, where. Raises ScheduleError for a start that is no time of day."""
    lines = [f"# {schedule.title}", "", "| from | min | | |", "| --- | ---: | --- | --- |"]
    for when, row in zip(times(schedule, start), schedule.rows, strict=True):
        where = f"`notebooks/{row.notebook}.ipynb`" if row.notebook else f"`labs/{row.lab}.md`" if row.lab else ""
        lines.append(f"| {when} | {row.minutes} | {_emphasis(row)} | {where} |")
    return "\n".join(lines) + "\n"


def plan(schedule: Schedule, start: str = START) -> str:
    """The instructor's table as Markdown: with slides, parts, and what to leave out. Raises what `agenda` raises."""
    lines = ["| from | min | what | with | late? |", "| --- | ---: | --- | --- | --- |"]
    for when, row in zip(times(schedule, start), schedule.rows, strict=True):
        lines.append(f"| {when} | {row.minutes} | {_emphasis(row)} | {row.material} | {row.late} |")
    return "\n".join(lines) + "\n"


def _emphasis(row: Row) -> str:
    return f"*{row.what}*" if row.pause else row.what


def overview() -> str:
    """All schedules as a Markdown table: title, minutes, what for."""
    rows = [f"| {one.title} | {one.minutes} | {one.purpose} |" for one in load().values()]
    return "\n".join(["| | minutes | |", "| --- | ---: | --- |", *rows]) + "\n"


def with_plans(text: str) -> str:
    """A page with its tables as the file of schedules has them today; each stands between <!-- schedule NAME --> and <!-- end -->.

    Raises ScheduleError for a page without a place for one of them.
    """
    for name, table in ({"all": overview()} | {one.name: plan(one) for one in load().values()}).items():
        begin, end = f"<!-- schedule {name} -->\n", "<!-- end -->"
        head, begun, rest = text.partition(begin)
        _, ended, tail = rest.partition(end)
        if not (begun and ended):
            raise ScheduleError(f"The page has no place for the schedule {name!r}: {begin.strip()} … {end}.")
        text = head + begin + table + end + tail
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 1 after saying what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m helpers.schedule", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", help="which schedule; without one, which there are")
    parser.add_argument("--start", default=START, help="when it begins (%(default)s)")
    parser.add_argument("--instructor", action="store_true", help="with slides, parts, and what to leave out when late")
    parser.add_argument("--write", action="store_true", help="renew the tables in labs/INSTRUCTOR.md")
    options = parser.parse_args(arguments)
    try:
        if options.write:
            GUIDE.write_text(with_plans(GUIDE.read_text()))
        elif not options.name:
            for schedule in load().values():
                print(f"{schedule.name:12} {schedule.minutes:3} minutes: {schedule.purpose}")
        else:
            show = plan if options.instructor else agenda
            print(show(find(options.name), options.start), end="")
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
