"""The workshop's notebooks and labs as a class gets them: without outputs, so that learners predict before they see.

`write(root, folder)` puts them into a folder, with a list SHA256SUMS by which slurm/ondemand sees what a participant has
changed. It needs nothing but Python, for an installation starts with it.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KERNEL = {"display_name": "LLM serving workshop", "language": "python", "name": "python3"}
FOLDERS = ("notebooks/", "labs/")
LIST = "SHA256SUMS"


def belongs(name: str) -> bool:
    """Whether a file of the repository is a participant's to open and change."""
    return name.startswith(FOLDERS) and not name.endswith(("ruff.toml", ".pyc"))


def stripped(text: str) -> str:
    """A notebook without outputs, execution counts and the widgets' state, as JupyterLab itself would save it.

    It names the class's kernel and this Python: otherwise JupyterLab would write both into every notebook that is merely
    opened, and the participant would seem to have changed it.
    """
    notebook = json.loads(text)
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": _language()}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _language() -> dict[str, Any]:
    """What ipykernel tells of its language."""
    return {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    }


def write(root: Path, names: Iterable[str], folder: Path) -> int:
    """Put those of the files `names` below `root` that belong to a participant into `folder`; how many they are.

    A file appears whole or not at all, and the list last: whoever copies meanwhile sees the old list or the new one.
    """
    listed = []
    for name in sorted(filter(belongs, names)):
        data = (root / name).read_bytes()
        if name.endswith(".ipynb"):
            data = stripped(data.decode()).encode()
        put(folder / name, data)
        listed.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    put(folder / LIST, "".join(listed).encode())
    return len(listed)


def put(path: Path, data: bytes) -> None:
    """Write a file by replacing it, so that nobody reads half of it. Unchanged ones are left alone."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def copy(root: Path, names: Iterable[str], folder: Path) -> None:
    """Copy files with their modes."""
    for name in names:
        put(folder / name, (root / name).read_bytes())
        shutil.copymode(root / name, folder / name)
