"""Lesson 02 as a web page: with neither kernel nor network, every picture shows, and the interactive one scrubs."""

from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

NOTEBOOK = Path(__file__).parents[2] / "notebooks/02_kv_cache.ipynb"


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    exported = tmp_path_factory.mktemp("page") / "lesson.html"
    exported.write_text(HTMLExporter().from_filename(str(NOTEBOOK))[0])
    page = browser.new_context(offline=True, viewport={"width": 1000, "height": 900}).new_page()
    page.goto(exported.as_uri(), wait_until="domcontentloaded")
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 1")
    return page


def test_every_picture_shows(page):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    stills = [o for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(stills) >= 8 and not any("application/vnd.jupyter.widget-view+json" in still.data for still in stills)
    shown = page.evaluate("[...document.images].filter(i => i.naturalWidth > 300 && i.clientWidth > 300).length")
    assert shown == page.locator("img").count() == len(stills)


def test_the_interactive_picture_scrubs(page):
    view = page.locator("[data-drawn]")
    slider, sentence = view.locator("input"), view.locator("[data-part=sentence]")
    assert sentence.inner_text().startswith("Step 0:")
    slider.focus()
    page.keyboard.press("End")
    last = sentence.inner_text()
    page.keyboard.press("ArrowLeft")
    assert last.startswith("Step ") and sentence.inner_text() != last
    assert view.locator("rect").count() > 20
