"""The decks of slides/: Markdown with figures, tables and numbers from this package, built to HTML and PDF by Marp.

    python -m helpers.slides            # all decks, the short class and the cheat sheet, into build/slides
    python -m helpers.slides --text     # only the Markdown that Marp would get

A slide is text between two lines of `---`; its last comment is the speaker's note and begins with its minutes, as in
`<!-- 2 min. Say ... -->` or `<!-- 2 min, core. ... -->`. Core slides make the talk of the 90-minute class.
"""

import argparse
import base64
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from helpers import slide_values
from helpers.errors import WorkshopError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "slides"
BUILT = ROOT / "build" / "slides"
CLASS = "class-90-minutes"  # the deck that is made of the others' core slides
SHEET = "cheat-sheet"

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_NOTE = re.compile(r"<!--\s*(?P<minutes>\d+(?:\.5)?) min(?P<core>, core)?\.\s.*?-->\s*\Z", re.DOTALL)


class SlideError(WorkshopError):
    """A deck that cannot be built as it is written."""


@dataclass(frozen=True)
class Slide:
    """One slide's text with its note, the minutes it takes, and whether the 90-minute class has it."""

    text: str
    minutes: float
    core: bool


@dataclass(frozen=True)
class Deck:
    """A deck as written: `name` of the file, `title`, and its slides, in which nothing is filled in yet."""

    name: str
    title: str
    slides: tuple[Slide, ...]

    @property
    def minutes(self) -> float:
        """Minutes of the whole talk, without demonstrations."""
        return sum(slide.minutes for slide in self.slides)


def decks(folder: Path = SOURCES) -> dict[str, Deck]:
    """The decks of a folder by name, and the short one made of their core slides. Raises SlideError."""
    found = {path.stem: read(path) for path in sorted(folder.glob("[0-9]*.md"))}
    core = tuple(slide for deck in found.values() for slide in deck.slides if slide.core)
    short = read(folder / f"{CLASS}.md")
    return found | {CLASS: replace(short, slides=short.slides + core)}


def read(path: Path) -> Deck:
    """A deck's slides and minutes. Raises SlideError for a slide without a note that says its minutes."""
    text = path.read_text()
    if not (front := _FRONT.match(text)):
        raise SlideError(f"{path} begins with no front matter (--- title: ... ---).")
    title = re.search(r"^title: (.+)$", front[1], re.MULTILINE)
    slides = [_slide(part, path) for part in re.split(r"\n---\n", text[front.end() :])]
    return Deck(path.stem, title[1] if title else path.stem, tuple(slides))


def _slide(text: str, path: Path) -> Slide:
    if not (note := _NOTE.search(text.strip())):
        first = text.strip().splitlines()[0] if text.strip() else "an empty one"
        raise SlideError(f"{path}: the slide {first!r} does not end with a note such as <!-- 2 min. Say ... -->.")
    return Slide(text.strip(), float(note["minutes"]), bool(note["core"]))


def fill_in(text: str, where: str, **more: object) -> str:
    """The text with figures, tables and numbers in place. Raises SlideError for a name that nobody knows."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= slide_values.FILTERS
    try:
        return environment.from_string(text).render(**slide_values.names(), **more)
    except (jinja2.TemplateError, WorkshopError, LookupError, TypeError, ValueError) as error:
        raise SlideError(f"{where} cannot be filled in: {error}") from error


def markdown(deck: Deck, every: dict[str, Deck]) -> str:
    """The deck as Marp takes it, with everything filled in. Raises SlideError."""
    minutes = {name: other.minutes for name, other in every.items()}
    front = f"---\nmarp: true\ntheme: workshop\npaginate: true\ntitle: {deck.title}\n---\n\n"
    parts = []
    for number, slide in enumerate(deck.slides, 1):
        where = f"slides/{deck.name}.md, slide {number}"
        parts.append(fill_in(slide.text, where, deck=deck.name, minutes=minutes))
    return front + "\n\n---\n\n".join(parts) + "\n"


def sheet() -> str:
    """The cheat sheet as Marp takes it: a page of its own size. Raises SlideError."""
    text = (SOURCES / f"{SHEET}.md").read_text()
    return fill_in(text, f"slides/{SHEET}.md")


def write(folder: Path = BUILT) -> list[Path]:
    """Fill in all decks and the cheat sheet and write them as Markdown for Marp; returns the files.

    Raises SlideError for a deck that cannot be filled in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    every = decks()
    texts = {name: markdown(deck, every) for name, deck in every.items()} | {SHEET: sheet()}
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text)
    return [folder / f"{name}.md" for name in texts]


def convert(files: Sequence[Path], folder: Path = BUILT, kinds: Sequence[str] = ("html", "pdf")) -> list[Path]:
    """Have Marp make HTML and PDF of these files, next to them; returns what it made.

    Raises SlideError with Marp's own words when it fails, or says how to get it.
    """
    marp = SOURCES / "node_modules" / ".bin" / "marp"
    if not marp.exists():
        raise SlideError("Marp is not here: `make slides` fetches it, and so does `bash slides/setup.sh`.")
    made = []
    for kind in kinds:
        flags = ["--pdf", "--pdf-notes", "--pdf-outlines", "--pdf-outlines.headings=false"] if kind == "pdf" else []
        command: list[str | Path] = [
            marp,
            "--no-stdin",
            "--html",
            "--no-config-file",
            *flags,
            "--theme-set",
            *themes(folder),
            "--",
            *files,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(kind))
        made += [path.with_suffix(f".{kind}") for path in files]
        if done.returncode or not all(path.exists() for path in made):
            raise SlideError(f"Marp made no {kind.upper()}: {done.stderr.strip()[-600:]}")
    return made


def themes(folder: Path = BUILT) -> list[Path]:
    """The themes with their fonts inside, so that a page needs no other file; written into a folder."""
    made = []
    for path in sorted((SOURCES / "theme").glob("*.css")):
        made.append(folder / path.name)
        made[-1].write_text(re.sub(r"url\((fonts/[^)]+)\)", lambda found: f"url({_data(found[1])})", path.read_text()))
    return made


def _data(font: str) -> str:
    return f"data:font/woff;base64,{base64.b64encode((SOURCES / 'theme' / font).read_bytes()).decode()}"


def _environment(kind: str) -> dict[str, str]:
    """For PDF Marp needs a Chromium, which as root runs without its sandbox only."""
    if kind != "pdf":
        return dict(os.environ)
    found = subprocess.run([ROOT / "tests" / "chromium.sh"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise SlideError(f"PDF needs a Chromium: {found.stderr.strip()[-300:]}")
    sandbox = {"CHROME_NO_SANDBOX": "1"} if os.geteuid() == 0 else {}
    return os.environ | {"CHROME_PATH": found.stdout.strip()} | sandbox


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 1 after saying what cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m helpers.slides", description=__doc__.partition("\n")[0])
    parser.add_argument("--text", action="store_true", help="write only the Markdown that Marp would get")
    parser.add_argument("--to", type=Path, default=BUILT, metavar="FOLDER", help="where to (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        made = write(options.to)
        made = made if options.text else convert(made, options.to)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    for path in made:
        print(
            f"{path.stat().st_size / 1e6:5.1f} MB  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
