"""The slides as built by `make slides`: every page is drawn in Chromium and looked at for what a class could not read."""

import subprocess
import time

import numpy as np
import pypdf
import pytest
import slide_pages

from helpers import schedule, slides

ROOT = slides.ROOT
DECKS = sorted(slides.decks())
A4 = {"width": 1123, "height": 794}  # CSS pixels of the cheat sheet
PRINTED = 11.3  # CSS pixels, 8.5 pt: paper is read from nearer than a wall


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with all decks and the cheat sheet, and the seconds it took, packages of Marp apart."""
    done = subprocess.run([ROOT / "slides" / "setup.sh"], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    folder, begin = tmp_path_factory.mktemp("slides"), time.monotonic()
    slides.convert(slides.write(folder), folder)
    return folder, time.monotonic() - begin


def test_built_soon_and_small(built):
    folder, seconds = built
    assert seconds < 120
    assert {path.stem for path in folder.glob("*.html")} == {*DECKS, slides.SHEET}
    assert max(path.stat().st_size for path in folder.glob("*.html")) < 15e6


def test_they_need_no_network(built):
    """Nothing in a page is fetched: the only addresses are names of formats, and licences in comments."""
    for path in built[0].glob("*.html"):
        text = path.read_text()
        for part in ('src="http', "src='http", "url(http", '<link rel="stylesheet"', "@import"):
            assert part not in text, f"{path.name}: {part}"


@pytest.mark.parametrize("name", DECKS)
def test_every_page_can_be_read(built, browser, name):
    """Nothing cut or overlapping, nothing below 18 pt, contrast of WCAG AA at least, in a browser without network."""
    pages = list(slide_pages.pages(browser, built[0] / f"{name}.html"))
    assert len(pages) == len(slides.decks()[name].slides)
    found = [f"slide {page.number}: {fault}" for page in pages for fault in slide_pages.faults(page)]
    assert not found, "\n".join(found)


def test_the_cheat_sheet_is_one_page(built, browser):
    (page,) = slide_pages.pages(browser, built[0] / f"{slides.SHEET}.html", **A4)
    assert not slide_pages.faults(page, PRINTED)
    assert len(pypdf.PdfReader(built[0] / f"{slides.SHEET}.pdf").pages) == 1


@pytest.mark.parametrize("name", DECKS)
def test_pdf_has_all_pages_with_notes(built, name):
    reader = pypdf.PdfReader(built[0] / f"{name}.pdf")
    assert len(reader.pages) == len(slides.decks()[name].slides)
    assert all("min" in page["/Annots"][-1].get_object()["/Contents"] for page in reader.pages)


@pytest.mark.parametrize("name", DECKS)
def test_all_is_filled_in(built, name):
    text = (built[0] / f"{name}.md").read_text()
    for left in ("{{", "{%", "Undefined", "NaN", ">nan<", ">None<"):
        assert left not in text


def test_faults_are_found(tmp_path, browser):
    """Small, pale, cut, overlapping and overflowing text."""
    body = {
        "pt": '<p style="font-size: 20px">small</p>',
        "contrast": '<p style="color: #bbb">pale</p>',
        "off the page": '<p style="position: absolute; left: 1200px; top: 80px; white-space: nowrap">out of the page</p>',
        "lies over": '<p style="position: absolute; top: 90px">one text</p><p style="position: absolute; top: 95px">another</p>',
        "cut off": "<pre><code>" + "x" * 200 + "</code></pre>",
        "runs off the lower edge": '<div style="height: 900px">tall</div>',
    }
    front = "---\nmarp: true\ntheme: workshop\npaginate: true\n---\n\n"
    (tmp_path / "bad.md").write_text(front + "\n\n---\n\n".join(f"# title\n\n{html}" for html in body.values()))
    slides.convert([tmp_path / "bad.md"], tmp_path, ("html",))
    for page, (fault, _) in zip(slide_pages.pages(browser, tmp_path / "bad.html"), body.items(), strict=True):
        assert any(fault in said for said in slide_pages.faults(page)), (fault, slide_pages.faults(page))


def test_pages_have_pictures(built):
    """At least a quarter of every deck's pages are drawn."""
    for name in DECKS:
        text = (built[0] / f"{name}.md").read_text()
        assert text.count("<figure>") >= len(slides.decks()[name].slides) / 4, name


def test_minutes_on_a_cover_are_those_of_its_notes(built):
    for name, deck in slides.decks().items():
        assert f"{deck.minutes:.0f} minutes" in (built[0] / f"{name}.md").read_text()
    assert slides.decks()[slides.CLASS].minutes < schedule.find("90-minutes").minutes * 0.6  # people came to try it
    assert np.isclose(
        sum(row.minutes for row in schedule.find("90-minutes").rows if row.slides), slides.decks()[slides.CLASS].minutes
    )
