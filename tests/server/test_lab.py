"""`make lab` for real: JupyterLab over HTTP, the first lesson run in a kernel that it started, then Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import nbformat
import psutil
import pytest
from websocket import create_connection

ROOT = Path(__file__).parent.parent.parent
LESSON = "notebooks/00_start_here.ipynb"
TOKEN = "token-of-the-test"


def make(*arguments: str, **settings) -> subprocess.Popen:
    """A make of its own, not a part of the one that may be running the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= settings.pop("env", {})
    return subprocess.Popen(
        ["make", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, **settings,
    )  # fmt: skip


class Lab:
    """A running `make lab`: what it printed, its processes, and its REST API."""

    def __init__(self, home: Path):
        self.home, self.printed = home, ""
        self.make = make("lab", "OPEN=no", env={"WORKSHOP_HOME": str(home), "JUPYTER_TOKEN": TOKEN})
        for line in self.make.stdout:
            self.printed += line
            if address := re.search(r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab", line):
                self.api = httpx.Client(base_url=address.group(1), headers={"Authorization": f"token {TOKEN}"})
                break
        else:
            raise AssertionError(f"make lab ended with {self.make.wait()}:\n{self.printed}")
        self.wait_for_jupyter()

    def wait_for_jupyter(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                return self.api.get("/api/status").raise_for_status()
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"JupyterLab does not answer:\n{self.printed}")

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.make.pid), *psutil.Process(self.make.pid).children(recursive=True)]

    def press_ctrl_c(self) -> int:
        """What a terminal does: SIGINT to the whole foreground group."""
        os.killpg(self.make.pid, signal.SIGINT)
        self.printed += self.make.communicate(timeout=60)[0]
        return self.make.returncode


class Kernel:
    """A kernel started through Jupyter's REST API, spoken to over its websocket as JupyterLab does."""

    def __init__(self, lab: Lab, notebook: str):
        request = {"path": notebook, "name": "lesson", "type": "notebook", "kernel": {"name": "python3"}}
        kernel = lab.api.post("/api/sessions", json=request, timeout=60).raise_for_status().json()["kernel"]["id"]
        url = f"{lab.api.base_url}/api/kernels/{kernel}/channels?token={TOKEN}".replace("http", "ws", 1)
        self.socket = create_connection(url, timeout=180)

    def run(self, code: str) -> str:
        """Everything the cell printed or showed as text; an error in it is an error here."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "test", "version": "5.3"}
        content = {"code": code, "silent": False, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self.socket.send(json.dumps(message))
        shown = ""
        while True:
            reply = json.loads(self.socket.recv())
            if reply["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            content = reply["content"]
            assert reply["msg_type"] != "error", "\n".join(content["traceback"])
            shown += content.get("text", "") if reply["msg_type"] == "stream" else ""
            shown += content.get("data", {}).get("text/plain", "")
            if reply["msg_type"] == "status" and content["execution_state"] == "idle":
                return shown


@pytest.fixture
def lab(tmp_path):
    running = Lab(tmp_path)
    yield running
    if running.make.poll() is None:
        running.press_ctrl_c()


def test_make_lab_leads_to_the_first_lesson_with_a_live_server_and_ends_clean(lab):
    (connection,) = (lab.home / "servers").glob("*.json")
    assert "tiny-llama answers at http://127.0.0.1:" in lab.printed
    assert lab.api.get("/lab", follow_redirects=True).status_code == 200
    assert f"/lab/tree/{LESSON}" in lab.api.get("/", headers={}, follow_redirects=False).headers["location"]
    assert httpx.get(f"{lab.api.base_url}/api/contents").status_code == 403, "without the token"

    kernel = Kernel(lab, LESSON)
    cells = [cell.source for cell in nbformat.read(ROOT / LESSON, as_version=4).cells if cell.cell_type == "code"]
    shown = "\n".join(kernel.run(cell) for cell in cells)
    assert json.loads(connection.read_text())["base_url"] in shown, "it found this server and started no other"
    assert "A cache of the keys and values" in shown or "KV cache" in shown
    assert "✗" not in shown

    processes = lab.processes()
    names = " ".join(" ".join(process.cmdline()) for process in processes)
    assert all(part in names for part in ("helpers.keeper", "vllm", "jupyterlab", "ipykernel"))
    assert lab.press_ctrl_c() != 0, "make calls an interrupted run an error"
    assert "JupyterLab and the server have ended." in lab.printed and "Traceback" not in lab.printed
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive and not list(connection.parent.iterdir())


def test_jupyterlab_does_not_outlive_a_killed_lab():
    program = "from helpers.lab import jupyterlab; jupyterlab(open_browser=False).wait()"
    lab = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    next(line for line in lab.stderr if "is running at" in line)
    (jupyter,) = psutil.Process(lab.pid).children()
    lab.kill()
    lab.wait()
    assert psutil.wait_procs([jupyter], timeout=15)[1] == []


def test_a_server_that_cannot_start_is_explained_with_the_state_of_the_machine():
    lab = make("lab", "OPEN=no", env={"WORKSHOP_HOME": "/dev/null/nowhere"})
    printed = lab.communicate(timeout=60)[0]
    assert lab.returncode == 2 and "Traceback" not in printed
    assert "/dev/null/nowhere cannot be written (Not a directory). Free some space, or set WORKSHOP_HOME" in printed
    assert "✓ Python" in printed


def test_a_second_set_up_changes_nothing_and_takes_no_time():
    assert make("setup").wait(900) == 0
    stamp = ROOT / ".venv" / "workshop.json"
    before, started = stamp.stat().st_mtime_ns, time.monotonic()
    again = make("setup")
    assert again.communicate(timeout=60)[0] == "" and again.returncode == 0
    print(f"second make setup: {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started < 5
    assert stamp.stat().st_mtime_ns == before
