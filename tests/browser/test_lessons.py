"""JupyterLab as `make lab` starts it, in a browser: lessons run by clicking, sliders moved, all of it by keys alone."""

import json
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from labpage import LabPage, code_cells, text_of
from playwright.sync_api import expect

from helpers import lab

FOLDERS = ("notebooks", "labs")


@pytest.fixture(scope="module")
def jupyterlab(live_server, tmp_path_factory):
    """(address with its token, folder): JupyterLab of helpers.lab, at a copy of the notebooks, for it saves what it runs."""
    folder, runtime = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("runtime")
    for name in FOLDERS:
        shutil.copytree(lab.ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "ROOT", folder)
        patch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
        process = lab.jupyterlab(open_browser=False)
    try:
        yield address_of(runtime / f"jpserver-{process.pid}.json", process), folder
    finally:
        process.terminate()
        process.wait(30)


def address_of(file: Path, process) -> str:
    """What Jupyter writes once it listens."""
    deadline = time.monotonic() + 60
    while not file.exists() or not file.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    server = json.loads(file.read_text())
    return f"{server['url']}?token={server['token']}"


@pytest.fixture(scope="module")
def page(browser, jupyterlab):
    """One tab for all tests, which `make lab`'s address has led to the first lesson."""
    return LabPage.opened(browser, *jupyterlab)


def test_the_first_lesson_runs_by_clicking(page, live_server):
    assert page.notebook.name == "00_start_here.ipynb"
    page.picture("lesson_00")
    assert not page.page.locator(".jp-Notification-Toast-Close").count(), "a question that is none of ours"
    shown = text_of(code_cells(page.run_all()))
    assert live_server.connection.base_url in shown and "KV cache" in shown
    page.picture("lesson_00_run")


def test_lesson_03_runs_by_clicking_and_its_slider_moves_the_bars(page):
    page.open("03_online_inference.ipynb")
    cells = code_cells(page.run_all())
    assert len(cells) > 30 and "The server refuses this API key" in text_of(cells)
    explorer = page.cell("sampling_explorer")
    picture, handle = explorer.locator("img.widget-image"), explorer.locator(".noUi-handle").first
    before = picture.get_attribute("src")
    handle.hover()
    box = handle.bounding_box()
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 60, box["y"] + 5, steps=5)
    page.page.mouse.up()
    expect(picture).not_to_have_attribute("src", before)
    assert float(explorer.locator(".widget-readout").first.inner_text()) > 1
    page.picture("lesson_03_slider", show=explorer)


def test_the_chat_answers_what_is_typed(page):
    chat = page.cell("ChatPanel")
    chat.locator("input").fill("What is paged attention?")
    chat.get_by_role("button", name="Send").click()
    expect(chat.locator(".widget-html").first).to_contain_text("user: What is paged attention?")
    expect(chat.locator(".widget-html p")).to_have_count(4)
    expect(chat.locator(".widget-html").first).not_to_contain_text("▌")
    page.picture("lesson_03_chat", show=chat)


def test_all_of_it_by_keys_alone(browser, jupyterlab):
    page = LabPage.opened(browser, *jupyterlab)
    keys = page.page.keyboard
    page.open_by_keys("notebooks/03_online_inference.ipynb")
    sources = [cell.source for cell in nbformat.read(page.notebook, as_version=4).cells]
    number = next(n for n, source in enumerate(sources) if "sampling_explorer(" in source)
    for _ in range(number + 1):
        keys.press("Shift+Enter")
    explorer = page.page.locator(f'.jp-Notebook:visible .jp-Cell[data-windowed-list-index="{number}"]')
    slider = explorer.locator("[role=slider]").first
    slider.wait_for()
    keys.press("ArrowUp")
    for _ in range(4):  # the cell's own button comes before its output
        if page.focused() != "slider":
            keys.press("Tab")
    assert page.focused() == "slider"
    picture = explorer.locator("img.widget-image")
    before = picture.get_attribute("src")
    for _ in range(5):
        keys.press("ArrowRight")
    expect(picture).not_to_have_attribute("src", before)
    expect(explorer.locator(".widget-readout").first).to_have_text("1.50")
    page.picture("keys_alone", show=picture)
