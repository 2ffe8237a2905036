"""Links, their anchors, and paths named in notebooks and Markdown files exist; words are spelled as codespell knows them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

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
    """Relative link targets, their anchors, and quoted repository paths that do not exist; these may stand from the root."""
    links = [a or b for a, b in LINK.findall(text)]
    local = [link for link in links if not re.match(r"https?://|mailto:", link)]
    dead = [link for link in local if not _is_there(link, text, folder)]
    quoted = [name for name in QUOTED.findall(text) if name.split("/")[0] in TOP]
    return dead + [name for name in quoted if not list(ROOT.glob(name.rstrip("/")))]


def _is_there(link: str, text: str, folder: Path) -> bool:
    name, _, anchor = link.partition("#")
    if name and not (folder / name).exists():
        return False
    return not anchor or anchor in anchors(text_of(folder / name) if name else text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, hyphens for blanks, no other signs."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(path: Path) -> None:
    assert dead_links(text_of(path), path.parent) == []


def test_a_dead_link_or_path_is_found() -> None:
    text = "# One `a`: b\n[a](nowhere.md) [b](https://example.org) `helpers/nothing.py` `helpers/client.py` `and/or` "
    text += "[c](#one-a-b) [d](#two) [e](labs/README.md#without-a-cluster) [f](labs/README.md#with-two)"
    assert dead_links(text, ROOT) == ["nowhere.md", "#two", "labs/README.md#with-two", "helpers/nothing.py"]


def test_spelling(tmp_path):
    """All tracked text, with the words that pyproject.toml excuses."""
    command = [sys.executable, "-m", "codespell_lib"]
    wrong = "".join(("adr", "ess"))  # in one piece the test itself would be found
    (tmp_path / "wrong.md").write_text(f"Each {wrong} is checked.\n")
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert f"{wrong} ==> address" in done.stdout
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout


def test_the_citation_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(cited["version"]) == version
    assert {"cff-version", "message", "title", "authors", "license"} <= cited.keys()
    assert version in (ROOT / "CHANGELOG.md").read_text()
