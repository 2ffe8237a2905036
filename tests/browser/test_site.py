"""`make site`: every page without a network: it shows, it can be read by everybody, its links lead somewhere, search finds."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import axe_playwright_python
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
MAKE = ["-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-c", "docs/site", "."]
#: What a look at a page tells: its links and anchors, pictures that did not load, and what axe finds serious.
LOOK = """async () => ({
    links: [...document.querySelectorAll('a[href], link[href], img[src], script[src]')].map(e => e.href || e.src),
    anchors: [...document.querySelectorAll('[id]')].map(e => e.id),
    blank: [...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.src),
    problems: (await axe.run({preload: false, resultTypes: ['violations']})).violations
        .filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => `${v.impact} ${v.id}: ${v.nodes[0].html.slice(0, 200)}`),
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, *MAKE, folder], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page(browser):
    return browser.new_context(offline=True, viewport={"width": 1300, "height": 900}).new_page()


@pytest.fixture(scope="module")
def seen(site, page):
    """What LOOK tells of each page, by its path, with all that failed while it loaded."""
    failed, told = [], {}
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts and path.name != "index.html"]
    for path in sorted(pages):  # but the first, which leads on at once
        page.goto(path.as_uri())
        page.evaluate(AXE)
        told[path] = page.evaluate(LOOK) | {"failed": failed[:]}
        failed.clear()
    return told


def test_all_lessons_and_labs_are_there(site):
    wanted = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("labs/*.md"), ROOT / "slurm/README.md"]
    assert not [path.name for path in wanted if not (site / path.relative_to(ROOT).with_suffix(".html")).exists()]


def test_no_page_has_a_serious_problem_of_accessibility(seen):
    assert not {path.name: told["problems"] for path, told in seen.items() if told["problems"]}


def test_pages_need_no_network_and_show_every_picture(seen):
    assert not {
        path.name: told["failed"] + told["blank"] for path, told in seen.items() if told["failed"] + told["blank"]
    }


def test_links_lead_somewhere(seen):
    anchors = {path: set(told["anchors"]) for path, told in seen.items()}
    dead = []
    for path, told in seen.items():
        for address, anchor in (urldefrag(link) for link in told["links"] if link.startswith("file:")):
            target = Path(unquote(urlsplit(address).path))
            if not target.is_file() or (anchor and anchor not in anchors.get(target, {anchor})):
                dead.append(f"{path.name}: {address}#{anchor}")
    assert not dead
    inside = {link for told in seen.values() for link in told["links"] if link.startswith("file:")}
    assert len(inside) > 200


def test_a_widget_shows_the_picture_or_text_stored_beside_it(site, page):
    """The panels of lessons 00, 01 and 03; a page of nbconvert leaves them blank without a network."""
    for path in ROOT.glob("notebooks/*.ipynb"):
        outputs = [
            out.data for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", []) if "data" in out
        ]
        shown = [data for data in outputs if "application/vnd.jupyter.widget-view+json" in data]
        page.goto((site / "notebooks" / path.with_suffix(".html").name).as_uri())
        pictures = page.evaluate("[...document.images].filter(i => i.clientWidth > 200).map(i => i.alt)")
        for data in shown:
            assert data["text/plain"] in pictures if "image/png" in data else "text/html" in data
        text = page.locator("main").inner_text()
        assert path.name[:2] != "00" or "python -m helpers.slurm submit NAME" in text
        assert path.name[:2] != "03" or "assistant:" in text


def test_search_finds_without_a_network(site, page):
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/README.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("preemption")
    page.keyboard.press("Enter")
    hit = page.locator("#search-results li a").first
    hit.wait_for()
    assert "02" in page.locator("#search-results").inner_text()
    hit.click()
    page.wait_for_url(lambda address: "search.html" not in address)
    assert "preempt" in page.locator("main").inner_text()


def test_a_dead_link_stops_the_build(tmp_path):
    (tmp_path / "README.md").write_text("# A page\n\n[nowhere](nowhere.md)\n")
    command = [sys.executable, *MAKE[:-2], str(ROOT / "docs/site"), tmp_path, tmp_path / "out"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode and "nowhere.md" in done.stderr
