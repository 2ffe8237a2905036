"""A class on the run's own server: everybody's key, what it opens, taking it back, and the instructor's dashboard."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient
from places import CLASS

from helpers import class_folder, class_keys, classroom, connections, progress_store
from helpers.class_keys import ClassKeyError
from helpers.class_progress import Reader, checks
from helpers.client import WrongKeyError, connect
from helpers.progress_store import RIGHT, SEEN, WRONG, Event, Progress
from helpers.registered_keys import FRESH
from helpers.tiny import MODEL_NAME

ROOT = Path(__file__).parents[2]
LESSON, DASHBOARD = ROOT / "notebooks/00_start_here.ipynb", ROOT / "labs/instructor/class_dashboard.ipynb"


@pytest.fixture
def participant(live_server, monkeypatch, tmp_path):
    """A home without a server, in a class that has one."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSHOP_CLASS", str(CLASS))
    yield tmp_path / "home"
    class_folder.clear(CLASS)


def status(live_server, key: str, route: str = "/v1/models", method: str = "GET") -> int:
    address = live_server.connection.base_url.removesuffix("/v1")
    return httpx.request(
        method, address + route, headers={b"Authorization": f"Bearer {key}".encode("latin-1")}
    ).status_code


def test_a_participant_connects_with_a_key_of_their_own(live_server, participant, capsys):
    found = connect()
    assert f"{live_server.connection.base_url} (the class's server)" in capsys.readouterr().out
    assert found.api_key.startswith(f"u{os.getuid()}.") and found.api_key != live_server.connection.api_key
    reply = found.completions.create(model=MODEL_NAME, prompt="The capital of France is", max_tokens=1, temperature=0)
    assert reply.choices[0].text == " Paris"
    assert connect(quiet=True).api_key == found.api_key, "the key is kept"
    offered = next((CLASS / "servers").glob("*.json"))
    shared = [offered.read_text(), *(path.read_text() for path in (CLASS / "keys").iterdir())]
    assert not [text for text in shared if found.api_key in text or live_server.connection.api_key in text]
    titles = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    assert found.api_key not in titles


def test_each_key_opens_the_server_and_no_other_does(live_server, participant, tmp_path):
    paths = class_keys.hand_out(CLASS, ["ada", "bert", "guest-03"], tmp_path / "keys")
    keys = [path.read_text().strip() for path in paths]
    assert [status(live_server, key) for key in keys] == [200, 200, 200] and len(set(keys)) == 3
    secret = keys[0].partition(".")[2]
    wrong = [
        "ada",
        "ada.",
        f"ada.{secret}x",
        f"bert.{secret}",
        f"nobody.{secret}",
        f"../keys/ada.{secret}",
        "ada.\xff",
        secret,
    ]
    for key in wrong:
        assert status(live_server, key) == 401, key


def test_a_class_key_opens_what_lessons_need_and_not_what_stops_the_server(live_server, participant, tmp_path):
    key = class_keys.hand_out(CLASS, ["ada"], tmp_path)[0].read_text().strip()
    for route in ("/metrics", "/version", "/health", "/openapi.json", "/v1/models"):
        assert status(live_server, key, route) == 200, route
    schema = httpx.get(live_server.connection.base_url.removesuffix("/v1") + "/openapi.json",
                       headers={"Authorization": f"Bearer {live_server.connection.api_key}"}).json()  # fmt: skip
    assert {"/invocations", "/scale_elastic_ep"} <= set(schema["paths"])
    beside = [path for path in schema["paths"] if not path.startswith("/v1/") and "{" not in path]
    refused = {path for path in beside if status(live_server, key, path, "POST") == 403}
    assert {"/invocations", "/scale_elastic_ep"} <= refused
    assert not refused & {"/tokenize", "/detokenize", "/metrics"}


def test_a_key_that_is_taken_back_is_refused_within_seconds(live_server, participant, capsys):
    key, name = connect(quiet=True).api_key, class_keys.name_of_user()
    assert classroom.main(["block", name]) == 0
    deadline = time.monotonic() + FRESH + 2
    while status(live_server, key) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with pytest.raises(ClassKeyError, match=f"Your key {name} was taken back: ask your instructor"):
        class_keys.own(CLASS)
    assert classroom.main(["allow", name]) == 0
    assert status(live_server, class_keys.own(CLASS)) == 200, "at once: a key that does not match is looked up again"


def test_a_participant_whom_the_server_does_not_know_is_told_so(live_server, participant, monkeypatch, tmp_path):
    """As when keys are registered in another folder than the one that the server serves."""
    other = tmp_path / "other"
    for name in ("servers", "keys"):
        (other / name).mkdir(parents=True)
    connections.read(live_server.connection.path).offer(other)
    monkeypatch.setenv("WORKSHOP_CLASS", str(other))
    with pytest.raises(
        WrongKeyError, match=rf"It refuses your key, u{os.getuid()}, though it is registered in {other}"
    ):
        connect(quiet=True)


def test_lesson_00_against_the_class_with_progress_shared(participant, tmp_path):
    """As a participant does it: run all cells, answer, and remove the # in front of progress.share()."""
    notebook = nbformat.read(LESSON, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("# print(progress.share())", "print(progress.share())")
        cell.source = cell.source.replace("answer = ...\ncheck.q2", "answer = 148\ncheck.q2")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "(the class's server)" in printed and "Your instructor sees you as " in printed
    (seen,) = Reader(CLASS / "progress").read()
    assert f"sees you as {seen.name}: " in printed
    assert [(event.exercise, event.state) for event in seen.events] == [("00.q1", SEEN), ("00.q2", RIGHT)]


# --- the dashboard ----------------------------------------------------------------------------------------------------


def simulate(folder: Path, count: int = 60, seed: int = 0) -> None:
    """A class of so many as the helpers would have written it, each at some check of the course."""
    rng, now, course = random.Random(seed), time.time(), checks()
    for number in range(count):
        events, at = set(), now - rng.uniform(3600, 5400)
        for check in course[: rng.randint(1, len(course))]:
            events.add(Event(at, check, SEEN))
            events |= {Event(at + 10 * n, check, WRONG) for n in range(rng.choice([0, 0, 1, 2]))}
            events.add(Event(at + 40, check, RIGHT))
            at += min(60, (now - 200 - at) / 3)
        if number % 10 == 0:  # stuck: four wrong tries at the last
            events = {event for event in events if (event.exercise, event.state) != (check, RIGHT)}
            events |= {Event(now - 100 + n, check, WRONG) for n in range(4)}
        (folder / f"{number:016x}.json").write_text(Progress(events, f"simulated {number}").text())


def test_the_dashboard_shows_a_class_of_sixty_in_under_a_second(live_server, monkeypatch, tmp_path):
    shared = tmp_path / "class"
    (shared / "progress").mkdir(parents=True)
    simulate(shared / "progress")
    (shared / "progress/broken.json").write_text('{"events": [')
    monkeypatch.setenv("WORKSHOP_CLASS", str(shared))
    notebook = nbformat.read(DASHBOARD, as_version=4)
    look = [
        f"connected = dashboard._client\nfor _ in range(3): connected.completions.create(model='{MODEL_NAME}', prompt='A', max_tokens=40)",
        "costs = []\nfor _ in range(3):\n    dashboard._drawn = None\n    dashboard.refresh()\n    costs.append(dashboard.cost)",
        "import json\nprint(json.dumps({'costs': costs, 'tiles': dashboard._tiles.value, 'said': dashboard._warned.value,\n"
        "    'people': len(dashboard.participants), 'stuck': [each.tries for each in dashboard.stuck],\n"
        "    'requests': int(dashboard.server.frame['requests'].iloc[-1]), 'pictures': [len(dashboard._panels.value), len(dashboard._grid.value)], 'live': dashboard.is_live}))",
        "dashboard._lesson.value = '01'; paths = dashboard.export(); print(*paths, sep='\\n')",
        "dashboard.stop(); dashboard._thread.join(20); print(dashboard.is_live, dashboard._told.value)",
    ]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in look]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, seen, exported, stopped = (
        "".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in notebook.cells
    )
    seen = json.loads(seen)
    print("kernel seconds a refresh, all drawn anew:", seen["costs"])
    assert max(seen["costs"]) < 1
    assert seen["people"] == 60 and len(seen["stuck"]) >= 6 and max(seen["stuck"]) >= 4 and seen["live"]
    assert seen["requests"] >= 3
    assert "Left out, for they are no progress files: broken.json." in seen["said"] and min(seen["pictures"]) > 5000
    assert "requests running" in seen["tiles"] and "to the first token" in seen["tiles"] and ">–<" not in seen["tiles"]
    table, everything = map(Path, exported.split())
    assert len(json.loads(everything.read_text())["participants"]) == 60 and table.read_text().startswith("name,check,")
    assert stopped.startswith("False Stopped")
    shown = next(cell for cell in notebook.cells if cell.source.endswith("\ndashboard")).outputs[0].data
    assert "class-tiles" in shown["text/html"] and "application/vnd.jupyter.widget-view+json" in shown
    hardest = next(cell for cell in notebook.cells if "nlargest" in cell.source).outputs[0].data["text/plain"]
    assert "wrong_tries" in hardest and progress_store.EXERCISE.search(hardest)
