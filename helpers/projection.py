"""Figures on a wall: the lessons' pictures with text of at least 18 pt in the slides' typeface, as SVG with real text.

A slide is 960 x 540 pt (1280 x 720 CSS pixels), as other programs make it, so 18 pt here are 18 pt there.
"""

import io
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from helpers import plots
from helpers.errors import WorkshopError

FONTS = Path(__file__).resolve().parents[1] / "slides" / "theme" / "fonts"
FAMILY = "IBM Plex Sans"
LEAST = 18.0  # pt
WIDTH = 12.0  # inches of a picture that fills a slide's width
DARK_ORANGE = "#b0600d"  # plots.ORANGE is too pale for words on white, and for white words on it


class ProjectionError(WorkshopError):
    """A figure that cannot be shown to a class."""


def to_svg(figure: Figure, name: str, *, width: float = WIDTH, height: float | None = None, alt: str = "") -> str:
    """The figure as an SVG element of one line, `width` x `height` inches (default: its own shape), to stand in HTML.

    `alt` says what it shows to those who cannot see it (default: the figure's label). Raises ProjectionError without one.
    """
    alt = alt or str(figure.get_label())
    if not alt:
        raise ProjectionError(
            f"The picture {name!r} has no words for those who cannot see it: give its figure a label."
        )
    _enlarge(figure, width, height)
    _use_fonts()
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(written.getvalue(), name, alt)


def _enlarge(figure: Figure, width: float, height: float | None) -> None:
    before = figure.get_size_inches()
    factor = width / before[0]
    figure.set_size_inches(width, height or before[1] * factor)
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            for ticks in (side.get_major_ticks(), side.get_minor_ticks()):
                for tick in ticks:
                    side.set_tick_params(labelsize=max(LEAST, tick.label1.get_fontsize()))
        for side in (axis.xaxis, axis.yaxis):
            if side.get_scale() == "log" and not isinstance(side.get_major_formatter(), FixedFormatter):
                side.set_major_formatter(lambda value, _: short(value))
    for text in figure.findobj(Text):
        text.set_text(re.sub(r"^ +|  +", lambda blanks: "\N{NO-BREAK SPACE}" * len(blanks[0]), text.get_text()))
        text.set_fontsize(max(LEAST, text.get_fontsize()))
        text.set_fontfamily(FAMILY)
        if text.get_color() != "white":
            text.set_color(_readable(to_hex(text.get_color())))
    for line in figure.findobj(Line2D):
        line.set_linewidth(line.get_linewidth() * factor)
        line.set_markersize(line.get_markersize() * factor)
    for artist in figure.findobj(lambda a: isinstance(a, Line2D | Patch | PathCollection)):
        _darken(artist)


def short(value: float) -> str:
    """A number of a logarithmic axis without the small exponent: 1k, 10M, 0.1."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _darken(artist: Any) -> None:
    """Give what is drawn in plots.ORANGE the orange of the slides."""
    orange = to_rgb(plots.ORANGE)
    if isinstance(artist, Line2D):
        if to_rgb(artist.get_color()) == orange:
            artist.set_color(DARK_ORANGE)
    elif isinstance(artist, PathCollection):
        faces = np.asarray(artist.get_facecolor())
        if len(faces) and tuple(faces[0][:3]) == orange:
            artist.set_color(DARK_ORANGE)
    elif tuple(artist.get_facecolor()[:3]) == orange:
        alpha, edge = artist.get_alpha(), artist.get_edgecolor()
        artist.set_facecolor(DARK_ORANGE)
        artist.set_edgecolor(DARK_ORANGE if tuple(edge[:3]) == orange else edge)
        artist.set_alpha(alpha)


def contrast(one: str, other: str) -> float:
    """How far apart two colours are, 1 to 21, by the formula of WCAG 2."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _readable(color: str) -> str:
    """The color, darkened until it stands out from white as WCAG AA asks of small text."""
    while contrast(color, "white") < 4.5:
        red, green, blue = to_rgb(color)
        color = to_hex((0.95 * red, 0.95 * green, 0.95 * blue))
    return color


@cache
def _use_fonts() -> tempfile.TemporaryDirectory[str]:
    """Make the slides' typeface known to matplotlib, which reads no WOFF; the folder lives as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="workshop-fonts-")
    for packed in sorted(FONTS.glob("*.woff")):
        font = TTFont(packed)
        font.flavor = None
        font.save(unpacked := Path(folder.name) / f"{packed.stem}.ttf")
        font_manager.fontManager.addfont(unpacked)
    return folder


def _inline(svg: str, name: str, alt: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'id="(figure|axes|text|patch|line2d|legend|matplotlib|xtick|ytick|PathCollection)[^"]*"', "", body)
    words = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    style = "stroke-linejoin: round; stroke-linecap: butt"  # as matplotlib's own style sheet, but of this picture only
    opening = f'<svg role="img" aria-label="{words}" data-figure="{name}" style="{style}"'
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", " ", body).replace("base64, ", "base64,").replace("<svg", opening, 1).strip()
