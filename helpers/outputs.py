"""Run notebooks against the server at hand and keep their outputs, in one canonical form so that diffs stay small.

python -m helpers.outputs [notebooks/03_online_inference.ipynb ...]     all of notebooks/ without a name
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers.client import connect
from helpers.errors import WorkshopError

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
WIDGET_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def run(notebook: nbformat.NotebookNode, folder: Path = NOTEBOOKS) -> None:
    """Execute all cells in place. Raises CellExecutionError at the first cell that fails."""
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def canonical(notebook: nbformat.NotebookNode) -> str:
    """The notebook as text: fixed metadata, cells and widgets numbered instead of named at random."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if cell.cell_type == "code":
            cell["outputs"] = _joined(cell["outputs"])
    text = _written(notebook)
    if widgets:
        states = widgets["application/vnd.jupyter.widget-state+json"]["state"]
        numbers = {name: f"{n:032x}" for n, name in enumerate(_shown(text, states))}
        widgets["application/vnd.jupyter.widget-state+json"]["state"] = {name: states[name] for name in numbers}
        notebook.metadata["widgets"] = widgets
        text = WIDGET_ID.sub(lambda match: numbers.get(match[0], match[0]), _written(notebook))
        text = _written(nbformat.reads(text, as_version=4))  # type: ignore[no-untyped-call]  # keys in order again
    return text.rstrip() + "\n"


def _written(notebook: nbformat.NotebookNode) -> str:
    return str(nbformat.writes(notebook))  # type: ignore[no-untyped-call]  # nbformat has no types


def _joined(parts: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighbouring pieces of one stream as one: where they are cut depends on timing."""
    joined: list[nbformat.NotebookNode] = []
    for part in parts:
        if joined and part.output_type == "stream" == joined[-1].output_type and part.name == joined[-1].name:
            joined[-1].text += part.text
        else:
            joined.append(part)
    return joined


def _shown(cells: str, states: dict[str, Any]) -> list[str]:
    """Ids of the widgets that the cells show and of those inside them, in an order that does not depend on the ids."""
    shown = list(dict.fromkeys(name for name in WIDGET_ID.findall(cells) if name in states))
    for name in shown:  # grows while we walk
        inside = WIDGET_ID.findall(json.dumps(states[name], sort_keys=True))
        shown += [other for other in dict.fromkeys(inside) if other in states and other not in shown]
    return shown


def main(names: list[str]) -> int:
    """Runs the command. Returns 0, or 1 after saying which cell failed or why there is no server."""
    paths = [Path(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    try:
        connect(start=True)
        for path in paths:
            notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
            run(notebook)
            path.write_text(canonical(notebook))
            print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} code cells run")
    except (WorkshopError, CellExecutionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
