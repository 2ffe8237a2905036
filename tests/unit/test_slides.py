"""The decks as written: minutes, cues, and no number that was typed."""

import re

import pandas as pd
import pytest

from helpers import projection, slide_figures, slide_tables, slide_values, slides
from helpers.calibration import measured

SOURCES = sorted(slides.SOURCES.glob("[0-9]*.md"))

#: A number with a unit outside of {{ ... }} and code: such a figure belongs into the data or a formula.
TYPED = re.compile(
    r"\d[\d.,]*\s*(?:%|×|GB\b|GiB|KiB|kB|MB|TB|ms\b|µs|tokens\b|GPUs?\b|seconds\b|minutes\b|times\b|billion\b)"
)
CHOSEN = {"131,072 tokens"}  # a length that a table was asked for
CODE = re.compile(r"<!--.*?-->|```.*?```|`[^`]*`|<code>.*?</code>|\{\{.*?\}\}", re.DOTALL)


def typed(text: str) -> list[str]:
    return [found for found in TYPED.findall(CODE.sub("…", text)) if found not in CHOSEN]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_number_is_typed(path):
    assert typed(path.read_text()) == []


def test_a_typed_number_is_found():
    text = "about 50 GB, `--x 40 GB`, {{ load() }} GB, <!-- 2 min. 70 GB --> 3× and 80% of 131,072 tokens"
    assert typed(text) == ["50 GB", "3×", "80%"]


def test_a_slide_needs_a_note_with_minutes(tmp_path):
    (tmp_path / "1.md").write_text("---\ntitle: x\n---\n# one\n\n<!-- 1.5 min, core. Say it. -->\n\n---\n\n# two\n")
    with pytest.raises(slides.SlideError, match=r"# two.*does not end with a note"):
        slides.read(tmp_path / "1.md")
    (tmp_path / "1.md").write_text("---\ntitle: x\n---\n# one\n\n<!-- 1.5 min, core. Say it. -->\n")
    deck = slides.read(tmp_path / "1.md")
    assert (deck.minutes, deck.slides[0].core, deck.title) == (1.5, True, "x")


@pytest.mark.parametrize(
    "text, said",
    [
        ("{{ nobody_knows }}", "nobody_knows"),
        ("{{ figure('no_such_picture') }}", "no_such_picture"),
        ("{{ speed('tp4', 3) }}", "was not measured"),
        ("{{ load('llama-9') }}", "llama-9"),
        ("{{ demo('99_nothing', 'x') }}", "99_nothing"),
        ("{{ demo('01_memory_math', 'No such heading') }}", "No such heading"),
        ("{{ demo('01_memory_math', 'Weights', 'no such code') }}", "no such code"),
        ("{{ demo('01_memory_math', 'Weights', 'memory_planner') }}", "memory_planner"),
        ("{{ 1 | kilo }}", "kilo"),
    ],
)
def test_what_nobody_knows_is_an_error(text, said):
    with pytest.raises(slides.SlideError, match=re.escape(said)):
        slides.fill_in(text, "a slide")


def test_a_cue_names_the_cell():
    """By the number beside it in JupyterLab, and by its heading alone."""
    assert "cell [4]" in slide_values.demo("02_kv_cache", "Attention, computed twice", "cache_grid")
    assert "cell" not in slide_values.demo("02_kv_cache", "Pages")


def test_tables_put_numbers_to_the_right():
    frame = pd.DataFrame({"n": ["1.5", "20"], "what": ["a", "b"]}, index=pd.Index(["8B", "70B"], name="model"))
    html = slide_values.table(frame)
    assert html.count('class="number"') == 3 and "<th>model</th>" in html and "<td>8B</td>" in html


def test_transformers_figure_is_the_recorded_one():
    """The file tells it in a sentence."""
    assert f"batch 1 {slide_tables.TRANSFORMERS} tok/s" in measured()["baseline"]


def test_a_picture_on_a_wall():
    """No text under 18 pt, none paler than AA on white, words for those who cannot see it, text as text."""
    svg = projection.to_svg(slide_figures.cache_grid(), "grid", height=5)
    sizes = [float(size) for size in re.findall(r"font:? ?(?:-size: ?)?(?:\d+ )?([\d.]+)px", svg)]
    assert sizes and min(sizes) >= 18
    assert 'role="img"' in svg and 'aria-label="Scores' in svg and "<text" in svg and "\n" not in svg
    assert projection.contrast("white", projection.DARK_ORANGE) > 4.5
    figure = slide_figures.cache_grid()
    figure.set_label("")
    with pytest.raises(projection.ProjectionError, match="grid"):
        projection.to_svg(figure, "grid")


def test_axes_in_powers_have_no_small_exponents():
    assert [projection.short(value) for value in (0.1, 10, 2_000, 1e7, 3e9)] == ["0.1", "10", "2k", "10M", "3G"]
