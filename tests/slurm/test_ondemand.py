"""The Open OnDemand app's job on the cluster: JupyterLab behind the portal's proxy, one session at a time, a server beside it."""

import json
import re
import uuid

import httpx
import pytest
from portal import Proxy
from session import HOSTS, LESSON, PORTAL, Session
from testbed import until
from websocket import create_connection

from helpers import queue


def run_cell(proxy, browser, base, code):
    """Everything that a cell shows, run in a kernel that JupyterLab starts for the lesson, over its websocket."""
    request = {"path": LESSON, "name": "lesson", "type": "notebook", "kernel": {"name": "python3"}}
    kernel = browser.post(f"{base}/api/sessions", json=request, timeout=60).raise_for_status().json()["kernel"]["id"]
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    address = f"{proxy.origin}{base}/api/kernels/{kernel}/channels".replace("http", "ws", 1)
    socket = create_connection(address, timeout=60, cookie=cookie, origin=PORTAL)
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "test", "version": "5.3"}
    content = {"code": code, "silent": False, "allow_stdin": False}
    socket.send(
        json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
    )
    shown = ""
    while True:
        reply = json.loads(socket.recv())
        if reply["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        content = reply["content"]
        assert reply["msg_type"] != "error", content
        shown += content.get("text", "") if reply["msg_type"] == "stream" else ""
        if reply["msg_type"] == "status" and content["execution_state"] == "idle":
            socket.close()
            return shown


SEEN_BY_THE_KERNEL = """
import os, sys
from helpers import connections
print(connections.read_all()[-1].model, sys.prefix, os.getcwd())
print(sorted(name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))), "PASSWORD_HASH" in os.environ)
"""


def test_a_session_from_click_to_end(cluster, course, tmp_path):
    theirs = {
        "base_url": "http://10.77.0.12:20000/v1",
        "model": "class-model",
        "api_key": "k",
        "log": "",
        "node": "node2",
    }
    (course / "class/servers/class.json").write_text(json.dumps(theirs | {"state": "ready"}))
    session = Session(cluster, course, tmp_path, "first")
    where = session.connected()
    base = f"/node/{where['host']}/{where['port']}"
    login = f"{base}/login?next={base}/lab/tree/{LESSON}"
    with Proxy(HOSTS) as proxy, httpx.Client(base_url=proxy.origin, headers={"Origin": PORTAL}) as browser:
        assert browser.get(f"{base}/lab/tree/{LESSON}").headers["location"].startswith(f"{base}/login")
        wrong = browser.post(login, data={"password": where["password"][::-1]})
        assert wrong.status_code == 401 and list(browser.cookies) in ([], ["_xsrf"])
        right = browser.post(login, data={"password": where["password"]})
        assert right.headers["location"] == f"{base}/lab/tree/{LESSON}"
        assert f"Path={base}" in right.headers["set-cookie"] and "SameSite=Lax" in right.headers["set-cookie"]
        page = browser.get(right.headers["location"])
        assert page.status_code == 200 and "jupyter-config-data" in page.text
        kernels = browser.get(f"{base}/api/kernelspecs").json()
        assert list(kernels["kernelspecs"]) == [kernels["default"]] == ["python3"]
        assert kernels["kernelspecs"]["python3"]["spec"]["display_name"] == "LLM serving workshop"
        shown = run_cell(proxy, browser, base, SEEN_BY_THE_KERNEL).splitlines()
        assert shown[0] == f"class-model {course}/.venv {session.home}/work/notebooks"
        assert shown[1] in ("[] False", "['SLURM_CONF'] False"), "a notebook's sbatch must not see this job"

        second = Session(cluster, course, tmp_path, "second")
        second.job.ended()
        assert f"Your session {session.job.id} runs already" in second.messages()
        assert browser.get(f"{base}/api/status").status_code == 200
        foreign = {"Origin": "https://elsewhere.example.org"}
        assert browser.get(
            f"{base}/api/contents", headers=foreign | {"Referer": "https://elsewhere.example.org/"}
        ).status_code in (403, 404)
        session.job.cancel()
        session.job.ended()
        assert browser.get(f"{base}/lab").status_code == 503
    assert "The session has ended: it was deleted, or Slurm ended it." in session.messages()
    assert not (session.home / "work/.workshop/session").exists()
    until(lambda: f"no process: {session.job.processes()}", 15, lambda: not session.job.processes())
    third = Session(cluster, course, tmp_path, "third")
    third.connected()


def test_a_server_that_starts_and_ends_with_its_session(cluster, course, tmp_path):
    session = Session(cluster, course, tmp_path, "session", server="llama-3.1-8b")
    session.connected()
    told = until(lambda: session.log(), 60, lambda: re.search(r"Your server llama-3.1-8b is job (\d+);", session.log()))
    server = cluster.known(told[1])
    assert server.state() in queue.WAITING | queue.RUNNING
    assert server.facts()["TimeLimit"] == "03:00:00", "the session's hours"
    session.job.cancel()
    session.job.ended()
    server.ended()
    until(lambda: f"no process: {server.processes()}", 15, lambda: not server.processes())


def test_slurm_itself_refuses_what_one_may_not_use(cluster, course, tmp_path):
    """Before there is a job there is no card: the dashboard shows what sbatch says."""
    with pytest.raises(AssertionError, match="[Ii]nvalid partition"):
        Session(cluster, course, tmp_path, "session", queue="nosuch")
    with pytest.raises(AssertionError, match="[Rr]eservation is invalid"):
        Session(cluster, course, tmp_path, "again", reservation="nosuch")
