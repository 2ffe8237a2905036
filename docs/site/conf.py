"""How Sphinx makes `make site`: the repository's notebooks and Markdown as they are, nothing run, nothing fetched."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]

project = "Serving large language models on many GPUs"
copyright = "the workshop's authors, Apache-2.0"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "notebooks/[0-9]*.ipynb",
    "labs/*.md",
    "labs/*/*.ipynb",
    "slurm/*.md",
    "slurm/*/README.md",
    "helpers/data/*/README.md",
]
exclude_patterns = [".*", "**/.*", "build", "**/node_modules"]
#: What the list of pages shows below each heading, in this order; each page once.
CONTENTS = {
    "Lessons": ["notebooks/*"],
    "Labs": ["labs/README", "labs/lab*", "labs/*"],
    "On a cluster": ["slurm/README", "slurm/*"],
    "About": ["*"],
}

#: A link to a Markdown file or notebook; MyST takes it for a page of the site.
DOCUMENT = re.compile(r"\]\(([^)\s:#]+\.(?:md|ipynb))(?:#[^)\s]*)?\)")

nb_execution_mode = "off"
# The picture or text stored beside a widget shows in its place: a widget's own code would come from the network.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}
myst_heading_anchors = 4

html_theme = "pydata_sphinx_theme"
html_title = "LLM serving workshop"
html_theme_options = {
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-button-field"],
    "search_bar_text": "Search lessons and labs",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "light"}  # pictures and outputs are made for it
html_sidebars = {"**": ["pages.html"]}
templates_path = ["."]
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_extra_path = ["index.html"]
html_copy_source = html_show_sourcelink = html_use_index = False
html_show_search_summary = False  # it would read the pages again, which a browser does not do for files


def read(app, name: str, source: list[str]) -> None:
    """Adapt a page's text: files that are no pages are downloads, and the first page gets the list of all others."""
    folder = Path(app.env.doc2path(name)).parent

    def aim(link: re.Match) -> str:
        target = (folder / link[1]).resolve()
        is_page = not target.exists() or app.project.path2doc(target) in app.env.found_docs
        return link[0] if is_page else f"](path:{link[1]})"

    source[0] = DOCUMENT.sub(aim, source[0])
    if name == root_doc:
        source[0] += "".join(contents(app.env.found_docs - {root_doc}))


def contents(found: set[str]) -> Iterator[str]:
    """A hidden table of contents for each heading."""
    for title, patterns in CONTENTS.items():
        pages = dict.fromkeys(page for pattern in patterns for page in fnmatch.filter(sorted(found), pattern))
        found = found - pages.keys()
        listed = "\n".join(pages)
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


def describe_pictures(app, tree: nodes.document) -> None:
    """Say in place of a picture, to who cannot see it, what the notebook stored as its text, or which code drew it."""
    for cell in parts(tree, "cell_code"):
        code = next(cell.findall(nodes.literal_block)).astext().strip()
        for bundle in parts(cell, "mime_bundle"):
            texts = [kind.astext().strip() for kind in bundle if kind["mime_type"] == "text/plain"]
            told = [text for text in texts if not text.startswith("<Figure")]
            for image in bundle.findall(nodes.image):
                image.setdefault("alt", " ".join(told) or f"The picture that this code draws: {code.splitlines()[-1]}")


def parts(tree: nodes.Element, kind: str) -> list[nodes.container]:
    """MyST-NB's containers of one kind."""
    return [node for node in tree.findall(nodes.container) if node.get("nb_element") == kind]


def setup(app) -> None:
    app.connect("source-read", read)
    app.connect("doctree-read", describe_pictures)
