"""The pictures of log probabilities show what the tables hold, in words too, and in shades that differ in lightness."""

import math

import matplotlib
import pandas as pd
import pytest

from helpers import choices, logprobs_plots, sampling
from helpers.goodness import chi_square
from helpers.logprobs import DTYPES, LogprobsError

COLOR = {"blue": 0.4, "red": 0.25, "green": 0.2, "purple": 0.1, "orange": 0.05}


def some_table(tokens, probabilities, best=None):
    """Only what the picture reads; `best` tells for each token whether none was more probable."""
    best = best or [p is not None and p > 0.5 for p in probabilities]
    rows = {
        "position": range(len(tokens)), "token": tokens, "id": [900 + i for i in range(len(tokens))], "offset": 0,
        "logprob": [None if p is None else math.log(p) for p in probabilities],
        "probability": probabilities, "rank": None, "chosen": True, "most_probable": best,
    }  # fmt: skip
    return pd.DataFrame(rows).astype(DTYPES)


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_each_token_stands_over_its_probability_in_reading_order():
    table = some_table(["", "The", " cat", "\n", "sat"], [None, 0.31, 0.0431, 0.0002, 0.999])
    figure = logprobs_plots.heat_map(table, "A title")
    assert texts(figure) == ["start", "–", "The", "31%", "·cat", "4%", "⏎", "<0.1%", "sat", "100%"]
    heights = [text.get_position()[1] for axis in figure.axes for text in axis.texts][::2]
    assert heights == sorted(heights) and heights[-1] > heights[-2], "a new line begins after the one in the text"
    assert "5 tokens" in figure.get_label() and "·cat 4%" in figure.get_label()


def test_what_is_not_most_probable_has_a_thick_frame():
    figure = logprobs_plots.heat_map(some_table(["a", "b", "c"], [0.6, 0.3, 0.9], best=[True, False, None]))
    widths = [patch.get_linewidth() for patch in figure.axes[0].patches]
    assert widths[1] > 2 * widths[0] == 2 * widths[2]


def test_less_probable_is_darker():
    figure = logprobs_plots.heat_map(some_table(list("abcdef"), [1.0, 0.5, 0.1, 0.01, 1e-3, 1e-5]))
    lightness = [sum(patch.get_facecolor()[:3]) for patch in figure.axes[0].patches]
    assert lightness == sorted(lightness, reverse=True) and lightness[0] > lightness[-1] + 1


def test_ink_is_readable_on_every_shade():
    """Contrast of at least 4.5, as WCAG 2 asks for small print."""
    for step in range(101):
        color = matplotlib.colormaps[logprobs_plots.SHADES](0.85 * step / 100)[:3]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        light = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        contrast = (light + 0.05) / 0.05 if logprobs_plots._ink(color) == "black" else 1.05 / (light + 0.05)
        assert contrast >= 4.5, step


def test_boxes_do_not_overlap_and_stay_in_the_line():
    words = ["word" * (1 + i % 5) for i in range(120)]
    axis = logprobs_plots.heat_map(some_table(words, [0.5] * 120)).axes[0]
    boxes = [(p.get_y(), p.get_x(), p.get_x() + p.get_width()) for p in axis.patches]
    assert all(end <= logprobs_plots.LINE for _, _, end in boxes)
    for (y, _, end), (other, start, _) in zip(boxes, boxes[1:], strict=False):
        assert other > y or start > end


@pytest.mark.parametrize(
    "token, number, shown",
    [
        (" $x", None, r"·\$x"),
        ("🙂", 1, "U+1F642"),
        ("é", 1, "é"),
        ("数", None, "U+6570"),
        ("", 178, "#178"),
        ("", None, "?"),
    ],
)
def test_every_token_can_be_drawn(token, number, shown):
    assert logprobs_plots.label(token, number) == shown


def test_drawing_what_the_font_lacks_warns_of_nothing(recwarn, tmp_path):
    logprobs_plots.heat_map(some_table([" 🙂", "数", "$a$"], [0.1, 0.2, 0.3])).savefig(tmp_path / "map.png")
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("tokens", [0, logprobs_plots.MOST_TOKENS + 1])
def test_no_token_and_too_many_are_refused(tokens):
    with pytest.raises(LogprobsError, match=f"this table has {tokens}"):
        logprobs_plots.heat_map(some_table(["a"] * tokens, [0.5] * tokens))


def test_every_word_of_the_corpus_is_a_point():
    served = {"A": {" x": 0.61, " y": 0.3}, "B": {" x": 1.0}}
    figure = logprobs_plots.odds_against_corpus(served, {"A": {"x": 0.6, "y": 0.35, "z": 0.05}, "B": {"x": 1.0}})
    points = figure.axes[0].collections[-1].get_offsets().tolist()
    assert points == [[0.6, 0.61], [0.35, 0.3], [0.05, 0.0], [1.0, 1.0]]


def test_draws_stand_beside_what_was_expected():
    fit = chi_square({" a": 60, " b": 40}, {" a": 0.5, " b": 0.5})
    figure = logprobs_plots.fit_bars(fit, "A toss")
    assert texts(figure) == ["60\n(expected 50)", "40\n(expected 50)"]
    assert figure.axes[0].get_title(loc="left") == "A toss (p-value 0.046)" and "p-value 0.046" in figure.get_label()


def test_filters_say_what_they_cut():
    cuts = {"top_k=3": sampling.keep_top_k(COLOR, 3), "top_p=0.6": sampling.keep_top_p(COLOR, 0.6)}
    figure = logprobs_plots.kept(COLOR, cuts)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(cuts)
    assert [sum(t.get_text() == "cut" for t in axis.texts) for axis in figure.axes] == [2, 3]


def test_reliability_diagram_has_a_curve_for_each():
    bins = choices.reliability([0.05, 0.1, 0.55, 0.95, 0.93], [False, False, True, True, True])
    figure = logprobs_plots.reliability_diagram({"one": bins, "two": bins, "three": bins})
    _, names = figure.axes[0].get_legend_handles_labels()
    assert names == ["one", "two", "three"]
    curves = [c.lines[0] for c in figure.axes[0].containers]
    assert len({line.get_marker() for line in curves}) == len({line.get_linestyle() for line in curves}) == 3
