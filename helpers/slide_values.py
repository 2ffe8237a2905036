"""What a slide's `{{ ... }}` can name: pictures, tables, cues for demonstrations, and the package's own numbers."""

import html
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import (
    calibration,
    deployments,
    hardware,
    kv_cache,
    memory,
    models,
    parallel_data,
    projection,
    roofline,
    slide_figures,
    slide_levers,
    slide_tables,
    weights,
)
from helpers.errors import WorkshopError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


class CueError(WorkshopError):
    """A cue to a notebook, heading or cell that is not there."""


def figure(
    name: str, *arguments: Any, height: float | None = None, width: float = projection.WIDTH, alt: str = ""
) -> str:
    """The picture of slide_figures with that name, as HTML; width and height in inches, 12 across a slide.

    Raises LookupError for a name it does not have, ProjectionError for a picture without words.
    """
    if not callable(draw := getattr(slide_figures, name, None)) or name.startswith("_"):
        raise LookupError(f"there is no picture {name!r} in helpers/slide_figures.py")
    svg = projection.to_svg(draw(*arguments), name, width=width, height=height, alt=alt)
    return f"<figure>{svg}</figure>"


def table(frame: pd.DataFrame, small: bool = False) -> str:
    """A DataFrame of words and ready-made numbers as HTML: columns of numbers to the right, the index first if it has a name."""
    if frame.index.name:
        frame = frame.reset_index()
    numbers = [i > 0 and all(_is_number(str(value)) for value in frame[column]) for i, column in enumerate(frame)]
    kinds = [' class="number"' if number else "" for number in numbers]
    head = "".join(f"<th{kind}>{column}</th>" for kind, column in zip(kinds, frame.columns, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{kind}>{value}</td>" for kind, value in zip(kinds, row, strict=True)) + "</tr>"
        for row in frame.itertuples(index=False)
    ]
    return (
        f"<table{' class=small' if small else ''}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "+-−–" or text in ("", "not measured")


def blocks(here: int) -> str:
    """The four blocks in a row for a deck's cover, the one that begins here filled."""
    names = ("Foundation", "Optimisation", "Production", "Parallelism")
    spans = (f"<span{' class=here' if n == here else ''}>{n} {name}</span>" for n, name in enumerate(names, 1))
    return f'<div class="map">{"".join(spans)}</div>'


def demo(notebook: str, heading: str, code: str = "", *, say: str = "") -> str:
    """A cue for a live demonstration: the notebook, the heading to go to, and the cell whose code holds `code`.

    The cell is named by the number that JupyterLab shows beside it. Raises CueError when any of them is not there.
    """
    cell = _cell(notebook, heading, code)
    shown = f" · cell [{cell}]" if cell else ""
    words = f" — {html.escape(say)}" if say else ""
    return f'<div class="demo"><b>Live</b><code>{notebook}</code> · {html.escape(heading)}{shown}{words}</div>'


def _cell(notebook: str, heading: str, code: str) -> int | None:
    """The number of the first cell under the heading that holds the code; None when no code is asked for."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        raise CueError(f"There is no notebook {notebook!r} to show: notebooks/ has {', '.join(sorted(_notebooks()))}.")
    cells, inside = _cells(path), False
    for kind, source, number in cells:
        headings = (
            [line.lstrip("# ") for line in source.splitlines() if line.startswith("#")] if kind == "markdown" else []
        )
        if headings:
            if inside:
                break
            inside = heading in headings
        if inside and code and kind == "code" and code in source:
            return number
    if code or not any(
        heading == line.lstrip("# ") for kind, source, _ in cells if kind == "markdown" for line in source.splitlines()
    ):
        raise CueError(f"{notebook} has no cell with {code!r} under the heading {heading!r}.")
    return None


def _notebooks() -> list[str]:
    return [path.stem for path in NOTEBOOKS.glob("*.ipynb")]


@cache
def _cells(path: Path) -> list[tuple[str, str, int | None]]:
    cells = json.loads(path.read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell.get("execution_count")) for cell in cells]


def names() -> dict[str, Any]:
    """Everything a slide can name."""
    functions: list[Callable[..., Any]] = [
        figure, table, demo, blocks, models.load, weights.weight_bytes, weights.parameter_count, weights.active_parameter_count,
        kv_cache.kv_bytes_per_token, memory.plan, roofline.decode_seconds, roofline.decode_tokens_per_second,
        roofline.ttft_seconds, roofline.tp_bytes_per_step, roofline.pp_bytes_per_step, hardware.get_gpu,
        deployments.find, deployments.catalogue, slide_tables.speed, slide_tables.printed,
    ]  # fmt: skip
    return {function.__name__: function for function in functions} | {
        "GPUS": hardware.GPUS,
        "LINKS": hardware.LINKS,
        "tables": slide_tables,
        "levers": slide_levers,
        "measured": calibration.measured,
        "parallel": parallel_data,
    }


#: Numbers as a slide shows them: {{ bytes | gb }}; the argument is decimals.
FILTERS: dict[str, Callable[..., str]] = {
    "n": lambda value, decimals=0: f"{value:,.{decimals}f}",
    "gb": lambda value, decimals=0: f"{value / hardware.GB:,.{decimals}f}",
    "gib": lambda value, decimals=0: f"{value / hardware.GIB:,.{decimals}f}",
    "kib": lambda value, decimals=0: f"{value / 1024:,.{decimals}f}",
    "tb": lambda value, decimals=2: f"{value / hardware.TB:,.{decimals}f}",
    "ms": lambda value, decimals=0: f"{value * 1000:,.{decimals}f}",
    "percent": lambda value, decimals=0: f"{value:.{decimals}%}",
    "billion": lambda value, decimals=0: f"{value / 1e9:,.{decimals}f}",
}
