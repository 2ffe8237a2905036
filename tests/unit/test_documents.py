"""Links and paths named in notebooks and Markdown files exist."""

import re
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
TOP = {Path(name).parts[0] for name in TRACKED if "/" in name}
DOCUMENTS = [ROOT / name for name in TRACKED if name.endswith((".md", ".ipynb"))]

LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
QUOTED = re.compile(r"`([\w.-]+(?:/[\w.*-]+)+/?)`")


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def dead_links(text: str, folder: Path) -> list[str]:
    """Relative link targets and quoted repository paths that do not exist; a quoted path may stand from the root."""
    links = [a or b for a, b in LINK.findall(text)]
    local = [link.split("#")[0] for link in links if not re.match(r"https?://|mailto:|#", link)]
    dead = [link for link in local if not (folder / link).exists()]
    quoted = [name for name in QUOTED.findall(text) if name.split("/")[0] in TOP]
    return dead + [name for name in quoted if not list(ROOT.glob(name.rstrip("/")))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(path: Path) -> None:
    assert dead_links(text_of(path), path.parent) == []


def test_a_dead_link_or_path_is_found() -> None:
    text = "[a](nowhere.md) [b](https://example.org) `helpers/nothing.py` `helpers/client.py` `and/or`"
    assert dead_links(text, ROOT) == ["nowhere.md", "helpers/nothing.py"]
