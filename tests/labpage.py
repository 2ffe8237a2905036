"""JupyterLab in a browser, used as people use it: menus, clicks, keys. What a notebook holds is read from its saved file."""

import os
import re
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect

#: Where pictures go; CI keeps them, and `make screenshots` makes the README's from them.
PICTURES = Path(os.environ.get("WORKSHOP_PICTURES") or Path(__file__).parents[1] / "build/screenshots")
SIZE = {"width": 1280, "height": 860}


class LabPage:
    """A browser's tab with JupyterLab, which shows the notebooks of `folder`."""

    def __init__(self, page: Page, folder: Path):
        self.page, self.folder = page, folder
        page.set_default_timeout(60_000)

    @classmethod
    def opened(cls, browser: Browser, address: str, folder: Path) -> "LabPage":
        """A new browser at this address, once its notebook has a kernel."""
        lab = cls(browser.new_context(viewport=SIZE).new_page(), folder)
        lab.page.goto(address)
        return lab.ready()

    def ready(self) -> "LabPage":
        """Wait for the first cell, and for the status bar to say that the kernel is connected and has nothing to do."""
        self.page.locator(".jp-Notebook:visible .jp-Cell").first.wait_for()
        self.page.locator("#jp-bottom-panel").get_by_text(re.compile(r"\| Idle$")).wait_for()
        return self

    @property
    def notebook(self) -> Path:
        """The file of the notebook that is seen."""
        return self.folder / self.page.url.partition("/tree/")[2]

    def menu(self, *names: str) -> None:
        """Choose from the menu bar, as in menu("Run", "Run All Cells")."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{names[0]}$")).click()
        for name in names[1:]:
            self.page.locator(".lm-Menu-item", has=self.page.get_by_text(name, exact=True)).first.click()

    def open(self, name: str) -> None:
        """Double-click a file in the list at the left."""
        self.page.locator(".jp-DirListing-item", has_text=name).dblclick()
        self.page.wait_for_url(f"**/{name}")
        self.ready()

    def open_by_keys(self, path: str) -> None:
        """The command palette, and what it asks for."""
        self.page.keyboard.press("Control+Shift+C")
        palette = self.page.locator(".lm-CommandPalette-input:visible")
        expect(palette).to_be_focused()  # what is typed before goes elsewhere
        self.page.keyboard.type("open from path")
        self.page.locator(".lm-CommandPalette-item.lm-mod-active", has_text="Open from Path").wait_for()
        self.page.keyboard.press("Enter")
        self.page.locator(".jp-Dialog input").wait_for()
        self.page.keyboard.type(path)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"**/{path}")
        self.ready()

    def run_all(self, seconds: int = 120) -> nbformat.NotebookNode:
        """Clear stored outputs, Run > Run All Cells, and the notebook as saved after it."""
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")  # goes to the last cell
        last = self.page.locator(".jp-Notebook:visible .jp-CodeCell .jp-InputPrompt").last
        expect(last).to_have_text(re.compile(r"\[\d+\]:"), timeout=1000 * seconds)
        return self.saved()

    def saved(self) -> nbformat.NotebookNode:
        """Save with Ctrl+S; the file, once the dot of its tab has gone."""
        self.page.keyboard.press("Control+s")
        self.page.locator(".lm-TabBar-tab.lm-mod-current.jp-mod-dirty").wait_for(state="detached")
        return nbformat.read(self.notebook, as_version=4)

    def cell(self, text: str) -> Locator:
        """The code cell whose code holds `text`, brought into view."""
        code = self.page.locator(".jp-Cell-inputWrapper", has_text=text)
        found = self.page.locator(".jp-Notebook:visible .jp-CodeCell", has=code).first
        found.scroll_into_view_if_needed()
        return found

    def focused(self) -> str:
        """The role of the element that gets the keys."""
        return self.page.evaluate("document.activeElement.getAttribute('role') || document.activeElement.tagName")

    def picture(self, name: str, show: Locator | None = None) -> None:
        """Keep a picture of the page, with `show` in view, once nothing moves any more."""
        if show:
            show.scroll_into_view_if_needed()
        self.ready()
        self.page.wait_for_timeout(500)
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook that was run: all of them, and none with an error."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    return cells


def text_of(cells: list[nbformat.NotebookNode]) -> str:
    """All that the cells printed or showed as text."""
    outputs = [out for cell in cells for out in cell.outputs]
    return "\n".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in outputs)
