"""The still and the interactive picture: the same shapes, and the second one works offline in a browser without a kernel."""

import json
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from helpers.scheduler import Request, simulate
from helpers.trace import TraceError
from helpers.trace_plots import trace_figure
from helpers.trace_scene import COLORS, scene
from helpers.trace_view import SCRIPT, TraceView

PROMPT = tuple(range(20))
REQUESTS = [Request(name, (*PROMPT, i, i), 8 + 3 * i, i) for i, name in enumerate("abcdefgh")] + [
    Request("late", 9, 4, 99)
]
TRACE = simulate(REQUESTS, blocks=17, block_size=8, max_num_batched_tokens=24, max_num_seqs=6, prefix_caching=True)


def test_scene_agrees_with_the_trace() -> None:
    shapes = json.loads(json.dumps(scene(TRACE)))
    for step in TRACE.each_step():
        held = {span[0] for span in shapes["spans"] if span[1] <= step["step"] < span[2] and span[3]}
        assert len(held) == step["blocks"], step
    for request in shapes["requests"]:
        life = TRACE.requests[request["id"]]
        bars = request["bars"]
        assert (bars[0][1], bars[-1][2]) == (life.arrival, life.finish + 1)
        assert all(one[2] == other[1] for one, other in pairwise(bars)), "no gaps"
        assert sum(bar[0] == "again" for bar in bars) == life.preemptions
        assert bars[-1][3] + bars[-1][2] - bars[-1][1] - 1 == life.prompt + life.output - 1
    assert {len(span[3]) > 1 for span in shapes["spans"]} == {True, False}
    assert [note for note in shapes["notes"] if "late" in note[1]] == [
        [99, "late arrives"], [99, "late is admitted"], [102, "late writes its last token"],
    ]  # fmt: skip


def test_each_request_looks_different() -> None:
    requests = scene(simulate([Request(str(i), 4, 4) for i in range(14)], blocks=40))["requests"]
    assert len({(request["color"], request["striped"]) for request in requests}) == 14 == 2 * len(COLORS)


def test_colors_differ_for_the_colour_blind() -> None:
    """Every two colours, as someone without one kind of cones sees them (Machado, Oliveira and Fernandes 2009)."""
    matrices = {
        "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
        "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
        "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    }

    def linear(color: str) -> list[float]:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]

    for name, matrix in matrices.items():
        seen = [
            [sum(m * c for m, c in zip(row, linear(color), strict=True)) for row in matrix]
            for color in (*COLORS, "#000000")
        ]
        for i, one in enumerate(seen):
            for other in seen[:i]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.06, (name, i)


@pytest.mark.parametrize("policy", ["continuous", "static"])
def test_still_has_four_panels_and_a_text(policy: str) -> None:
    figure = trace_figure(
        simulate(REQUESTS, blocks=60, policy=policy, block_size=8, max_num_seqs=4), "A title", until=200
    )
    assert [axis.get_ylabel() for axis in figure.axes] == ["request", "block", "cache", "requests"]
    assert figure.axes[0].get_xlim() == (0, 201) and "9 requests in" in figure.get_label()


def test_what_is_too_large_to_draw_is_refused() -> None:
    for requests, blocks in [
        ([Request(str(i), 4, 4) for i in range(61)], 40),
        (REQUESTS, 600),
        ([Request("a", 4, 5000)], 400),
    ]:
        with pytest.raises(TraceError, match="too many to see anything"):
            TraceView(simulate(requests, blocks=blocks))


def test_html_is_the_same_each_time_and_holds_no_foreign_markup() -> None:
    trace = simulate([Request("</script><b>x", 4, 4), Request('"&', 4, 4)], blocks=9)
    page, again = (re.sub('base64,[^"]*', "", TraceView(trace, "<i>").html()) for _ in range(2))
    assert page == again
    assert page.count("</script>") == 1 and "<b>x" not in page.split("<script>")[0] and "<i>" not in page


def test_script_asks_for_nothing_from_outside() -> None:
    outside = re.findall(r"https?://[^\s\"']+|\bimport\b|\bfetch\b|innerHTML", SCRIPT.read_text())
    assert outside == ["http://www.w3.org/2000/svg"]


@pytest.fixture(scope="module")
def page(tmp_path_factory, browser):
    """A notebook with two pictures, as nbconvert exports it, open in a browser that has no network."""
    from nbconvert import HTMLExporter

    def cell(view: TraceView) -> nbformat.NotebookNode:
        output = nbformat.v4.new_output("display_data", data=view._repr_mimebundle_())
        return nbformat.v4.new_code_cell("view", outputs=[output])

    notebook = nbformat.v4.new_notebook(cells=[cell(TraceView(TRACE, "First")), cell(TraceView(TRACE, "Second"))])
    exported: Path = tmp_path_factory.mktemp("page") / "page.html"
    exported.write_text(HTMLExporter().from_notebook_node(notebook)[0])
    page = browser.new_context(offline=True).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(exported.as_uri(), wait_until="domcontentloaded")
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 2")
    return page


def test_exported_page_scrubs_offline(page) -> None:
    first, second = page.locator("[data-drawn]").all()
    slider, sentence = first.locator("input"), first.locator("[data-part=sentence]")
    assert first.locator("img").count() == 0, "the still has made room"
    slider.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    record = next(step for step in TRACE.each_step() if step["step"] == 12)
    expected = f"Step 12: {record['running']} running, {record['waiting']} waiting; computing {record['prefill']} prompt tokens"
    assert sentence.inner_text().startswith(expected) and f"{record['blocks']} of 16 blocks" in sentence.inner_text()
    assert slider.get_attribute("aria-valuetext") == sentence.inner_text()
    assert second.locator("[data-part=sentence]").inner_text().startswith("Step 0:")
    shown = first.locator("[data-part=tables] span[data-hint]")
    held = [span for span in scene(TRACE)["spans"] if span[1] <= 12 < span[2]]
    assert shown.count() == sum(len(span[3]) for span in held)
    page.keyboard.press("End")
    assert "late" in sentence.inner_text()
    assert page.problems == []


def test_pointing_at_a_block_names_its_owner(page) -> None:
    first = page.locator("[data-drawn]").first
    block, start, stop, owners = max((s for s in scene(TRACE)["spans"] if len(s[3]) == 1), key=lambda s: s[2] - s[1])
    first.locator(f'rect[data-hint^="Block {block}, steps {start} to {stop - 1}"]').hover()
    hint = first.locator("[data-part=hint]").inner_text()
    assert hint.endswith(f"block {owners[0][1] + 1} of {REQUESTS[owners[0][0]].id}.")
    assert first.locator('rect[opacity="0.25"]').count() > 0
    page.mouse.move(0, 0)
    assert first.locator('rect[opacity="0.25"]').count() == 0


def test_picture_has_a_text_and_a_label(page) -> None:
    first = page.locator("[data-drawn]").first
    assert TRACE.summary() in first.get_attribute("aria-label")
    assert first.locator("svg").get_attribute("aria-label") == TRACE.summary()
    assert page.get_by_label("step", exact=True).count() == 2 and page.get_by_role("slider").count() == 2
    assert page.locator("figcaption").first.inner_text() == TRACE.summary()
