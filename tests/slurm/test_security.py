"""Who can use a server, and where its key can be read: on a node that other people share."""

import json
import os
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
from testbed import ROOT, until

from helpers import class_keys, connections
from helpers.guard import OPEN

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def _as_stranger(job, method, path, *options):
    """The HTTP status that another user of the same node gets, without the key."""
    connection = job.connection()
    url = connection.base_url.removesuffix("/v1") + path
    command = ["ip", "netns", "exec", f"workshop-{connection.node}", *NOBODY]
    command += ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-d", "{}", *options, url]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def test_a_stranger_gets_nothing(reference):
    """Every route that the server itself lists, with every method; only those of guard.OPEN answer without the key."""
    client = reference.client()
    schema = client.get("/../openapi.json", cast_to=object)
    routes = [(path, method.upper()) for path, methods in schema["paths"].items() for method in methods]
    routes += [("/metrics", "GET"), ("/docs", "GET"), ("/openapi.json", "GET"), ("/v1/completions/", "POST")]
    assert ("/invocations", "POST") in routes and len(routes) > 20
    for path, method in routes:
        status = _as_stranger(reference, method, path)
        assert (status == 200) if path in OPEN else (status == 401), (method, path, status)


@pytest.mark.parametrize(
    "path", ["//v1/completions", "/v1//completions", "/health/../v1/completions", "/v1/completions?a=/health"]
)
def test_no_way_round(reference, path):
    assert _as_stranger(reference, "POST", path, "--path-as-is") == 401


def test_a_wrong_key_is_refused(reference):
    assert _as_stranger(reference, "POST", "/invocations", "-H", "Authorization: Bearer guess") == 401


def test_a_class_key_opens_the_server_until_it_is_taken_back(reference, tmp_path):
    (offered,) = (reference.of_class / "servers").iterdir()
    connection = connections.read(offered)
    assert connection.base_url == reference.connection().base_url and connection.api_key == connection.log == ""
    assert stat.S_IMODE(offered.stat().st_mode) == 0o644 and reference.connection().api_key not in offered.read_text()
    key = class_keys.hand_out(reference.of_class, ["ada"], tmp_path)[0].read_text().strip()
    header = ("-H", f"Authorization: Bearer {key}")
    routes = [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/invocations"), ("POST", "/scale_elastic_ep")]
    assert [_as_stranger(reference, *route, *header) for route in routes] == [200, 200, 403, 403]
    assert _as_stranger(reference, "GET", "/v1/models", "-H", f"Authorization: Bearer {key}x") == 401
    class_keys.block(reference.of_class, "ada")
    until("ada to be shut out", 10, lambda: _as_stranger(reference, "GET", "/v1/models", *header) == 401)


def test_files_are_the_owners_alone(reference, cluster):
    files = [*reference.folder.iterdir(), reference.connection().path, Path(reference.facts()["StdOut"])]
    assert len(files) >= 6
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (reference.folder, reference.connection().path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_the_key_is_told_to_nobody(reference, cluster):
    key = reference.connection().api_key
    assert len(key) >= 32
    for path in [*reference.folder.glob("*.log"), reference.folder / "command", Path(reference.facts()["StdOut"])]:
        assert key not in path.read_text(errors="replace"), path
    for process in psutil.process_iter():
        try:
            assert key not in " ".join(process.cmdline()), process
        except psutil.Error:
            continue
    for command in (["scontrol", "show", "job", "-d", reference.id], ["scontrol", "show", "step", f"{reference.id}.0"]):
        assert key not in cluster.run(*command).stdout


def test_the_guard_needs_a_key():
    """A server with the guard and no key does not start open: it does not start."""
    code = "from helpers.guard import RequireKey; RequireKey(None)"
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"}
    done = subprocess.run(
        [os.sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode and "VLLM_API_KEY" in done.stderr


def test_each_job_has_its_own_key(reference, cluster):
    second = cluster.submit("any-model")
    second.vllm_began()
    keys = {c.api_key for c in connections.read_all() if c.job_id in (reference.id, second.id)}
    assert len(keys) == 2
    second.cancel()
    second.ended()
    assert json.dumps(sorted(keys)[0]) not in second.log()
