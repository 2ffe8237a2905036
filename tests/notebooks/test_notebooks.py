"""Every notebook runs as committed (nbval, outputs compared) and with all solutions filled in."""

import importlib
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import checks, outputs
from helpers.checks import NOT_ATTEMPTED, RIGHT, WRONG, Exercise

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = Path(__file__).with_name("sanitize.cfg")
CHECK_CALL = re.compile(r"^check\.(q\d+)\(", re.MULTILINE)
UNANSWERED = re.compile(r"^answer = \.\.\.$", re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lesson(path: Path):
    """The module of this notebook's exercises, helpers/exercises/lesson_NN.py (lesson_08b.py for a lesson's second half)."""
    return importlib.import_module(f"helpers.exercises.lesson_{path.stem.partition('_')[0]}")


def exercises(path: Path) -> dict[str, Exercise]:
    return {name: value for name, value in vars(lesson(path)).items() if isinstance(value, Exercise)}


def verdicts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Exercise name -> text of its check's verdict."""
    found = {}
    for cell in code_cells(notebook):
        for name in CHECK_CALL.findall(cell.source):
            found[name] = "".join(o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result")
    return found


def nbval(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--nbval", str(path), "--nbval-sanitize-with", str(SANITIZE)]
    command += ["-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent), "-c", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent, check=False)


def solve(notebook: nbformat.NotebookNode, path: Path) -> int:
    """Put a cell behind each exercise that answers it and fails unless the check says "right"; how many there are."""
    added = 0
    for place, cell in reversed(list(enumerate(notebook.cells))):
        for name in CHECK_CALL.findall(cell.source) if cell.cell_type == "code" else []:
            assert UNANSWERED.search(cell.source), f"{name}: its cell needs a line `answer = ...`"
            code = f"{exercises(path)[name].code}\nassert check.{name}(answer).state == {RIGHT!r}, check.{name}(answer)"
            cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["nbval-ignore-output"]})
            notebook.cells.insert(place + 1, cell)
            added += 1
    return added


@each_notebook
def test_outputs_are_those_committed_and_every_solution_is_right(path: Path, tmp_path: Path, live_server) -> None:
    """In one run, for most of it is starting servers: the committed cells, and a solution behind each exercise."""
    notebook = read(path)
    assert solve(notebook, path) == len(exercises(path))
    solved = tmp_path / path.name
    nbformat.write(notebook, solved)
    done = nbval(solved)
    assert done.returncode == 0, done.stdout[-6000:]


def test_a_changed_output_and_a_wrong_solution_are_noticed(tmp_path: Path, live_server) -> None:
    """Or the test above proves nothing."""
    path = ROOT / "notebooks" / "00_start_here.ipynb"
    notebook = read(path)
    number = next(cell for cell in code_cells(notebook) if "max_model_len" in cell.source)
    number.outputs[0].data["text/plain"] = "2049"
    solve(notebook, path)
    solution = next(cell for cell in code_cells(notebook) if "assert check.q1" in cell.source)
    solution.source += f"\nanswer = {exercises(path)['q1'].wrong_answers[0]!r}\n{solution.source.splitlines()[-1]}"
    nbformat.write(notebook, tmp_path / path.name)
    done = nbval(tmp_path / path.name)
    assert done.returncode == 1 and "2 failed" in done.stdout, done.stdout[-3000:]


@each_notebook
def test_every_exercise_stands_in_the_notebook_unattempted(path: Path) -> None:
    found = verdicts(read(path))
    assert set(found) == set(exercises(path))
    assert all(text.startswith(f"{NOT_ATTEMPTED}: ") for text in found.values())
    assert len(found) >= 2


@each_notebook
def test_wrong_answers_are_told_wrong_with_a_hint(path: Path, live_server) -> None:
    for name, exercise in exercises(path).items():
        assert len(exercise.wrong_answers) >= 2, f"{name} lists fewer than two wrong answers"
        assert exercise(...).state == NOT_ATTEMPTED
        assert len(exercise.tip) > 20 and exercise.code
        for answer in exercise.wrong_answers:
            verdict = exercise(answer)
            assert verdict.state == WRONG, f"{name} accepts {answer!r}: {verdict}"
            assert len(verdict.message) > 20


def test_a_check_that_accepts_everything_would_be_noticed() -> None:
    generous = Exercise(lambda answer: checks.right("yes"), tip="a tip", code="answer = 1", wrong_answers=[2])
    assert generous(2).state != WRONG


@each_notebook
def test_cells_are_short(path: Path) -> None:
    lengths = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code_cells(read(path))]
    assert max(lengths) <= 15
    assert statistics.median(lengths) <= 4


@each_notebook
def test_outputs_are_kept_so_that_there_is_something_to_compare(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it with `make outputs`"
    silent = [cell.source for cell in cells if not cell.outputs]
    assert len(silent) < len(cells) / 2
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@each_notebook
def test_the_file_is_in_canonical_form(path: Path) -> None:
    assert path.read_text() == outputs.canonical(read(path)), "run `make outputs`"


@each_notebook
def test_a_lesson_opens_and_closes_as_lessons_do(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for part in (
        "**Questions.**",
        "**Objectives.**",
        "**Time.**",
        "**You need**",
        "> **Predict.**",
        "## Takeaways",
        "**Next:**",
    ):
        assert part in text, f"{part} is missing"


@each_notebook
def test_pictures_and_panels_show_without_a_kernel(path: Path) -> None:
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            data = output.get("data", {})
            if "application/vnd.jupyter.widget-view+json" in data:
                assert "image/png" in data or "text/html" in data, cell.source
