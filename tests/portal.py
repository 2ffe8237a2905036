"""Open OnDemand without its server: an app rendered as the dashboard does, its job, and the proxy that browsers go through."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web

from helpers import class_install, materials

ROOT = Path(__file__).parent.parent
APP = ROOT / "slurm" / "ondemand"

#: What ood_core's basic template makes of an app: the order of events, and the names that our scripts rely on.
JOB = """#!/bin/bash
cd {staged}
export host port
clean_up() {{ pkill -P "$SCRIPT_PID"; pkill -P $$; exit "${{1:-0}}"; }}
create_yml() {{ (umask 077; printf 'host: %s\\nport: %s\\npassword: %s\\n' "$host" "$port" "$password" >connection.yml); }}
{set_host}
[[ -e {staged}/before.sh ]] && source {staged}/before.sh
echo "Script starting..."
{staged}/script.sh &
SCRIPT_PID=$!
[[ -e {staged}/after.sh ]] && source {staged}/after.sh
create_yml
wait "$SCRIPT_PID" || clean_up 1
clean_up
"""


def ruby() -> str:
    """Where Ruby is, installed if need be."""
    done = subprocess.run([Path(__file__).with_name("ruby.sh")], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def site(app: Path, **settings: object) -> Path:
    """The app as a site copied it into its apps folder, with values of its own in settings.yml."""
    shutil.copytree(APP, app)
    text = (app / "settings.yml").read_text()
    for name, value in settings.items():
        line = f"{name}: {json.dumps(value)}"
        text, count = re.subn(rf"^( *){name}: .*$", lambda old, line=line: old[1] + line, text, flags=re.MULTILINE)
        assert count == 1, name
    (app / "settings.yml").write_text(text)
    return app


def render(app: Path, staged: Path, sub_app: str | None = None, **values: object) -> dict:
    """The app's form, submission and card as dictionaries; its scripts, rendered, are in `staged`."""
    asked = {"app": str(app), "sub_app": sub_app, "values": values, "staged": str(staged)}
    done = subprocess.run(
        [ruby(), Path(__file__).with_name("portal.rb")], input=json.dumps(asked), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def job_script(submit: dict, staged: Path) -> str:
    """The batch script that goes to sbatch."""
    return JOB.format(staged=staged, set_host=submit["batch_connect"]["set_host"])


def sbatch_options(submit: dict, staged: Path) -> list[str]:
    """The options that ood_core's adapter gives to sbatch, from what submit.yml.erb asks for."""
    script = dict(submit["script"])
    names = {"accounting_id": "-A", "queue_name": "-p", "reservation_id": "--reservation"}
    options = ["-D", str(staged), "-J", "ondemand/sys/dashboard/sys/workshop", "-o", f"{staged}/output.log"]
    options += ["-t", str(script.pop("wall_time") // 60)]
    native = script.pop("native", [])
    return options + [word for name, value in script.items() for word in (names[name], value)] + native


class Proxy:
    """The portal's /node/HOST/PORT/..., as Apache with OnDemand's configuration treats it; `hosts` maps names to addresses.

    The path goes on unchanged; Host becomes the node's; Location loses its host; cookies get the path /node/HOST/PORT.
    """

    def __init__(self, hosts: dict[str, str]):
        self.hosts, self._loop, ready = hosts, asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._runner.cleanup())

    async def _listen(self) -> None:
        self._client = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/node/{host}/{port}{rest:.*}", self._pass_on)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        listener = web.TCPSite(self._runner, "127.0.0.1", 0)
        await listener.start()
        self.origin = f"http://127.0.0.1:{listener._server.sockets[0].getsockname()[1]}"

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        host, port = request.match_info["host"], request.match_info["port"]
        target = f"http://{self.hosts.get(host, host)}:{port}{request.raw_path}"
        headers = request.headers.copy()
        headers["Host"], headers["X-Forwarded-Proto"], headers["X-Forwarded-User"] = f"{host}:{port}", "http", "someone"
        try:
            if "Upgrade" in request.headers:
                return await self._pass_on_socket(request, target, headers)
            body = await request.read()
            asked = self._client.request(request.method, target, headers=headers, data=body, allow_redirects=False)
            async with asked as reply:
                return web.Response(
                    status=reply.status, body=await reply.read(), headers=rewritten(reply.headers, host, port)
                )
        except WSServerHandshakeError as error:
            return web.Response(status=error.status)
        except OSError:
            return web.Response(status=503, text="Service Unavailable")

    async def _pass_on_socket(self, request: web.Request, target: str, headers) -> web.WebSocketResponse:
        kept = {name: value for name, value in headers.items() if name in ("Host", "Cookie", "Origin")}
        wanted = [word.strip() for word in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if word.strip()]
        connecting = self._client.ws_connect(target, headers=kept, protocols=wanted, max_msg_size=0)
        async with connecting as behind:
            front = web.WebSocketResponse(protocols=[behind.protocol] if behind.protocol else [], max_msg_size=0)
            await front.prepare(request)
            pumps = {asyncio.ensure_future(pump(front, behind)), asyncio.ensure_future(pump(behind, front))}
            _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for each in left:
                each.cancel()
        return front


async def pump(source, sink) -> None:
    async for message in source:
        if message.type == WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await sink.send_bytes(message.data)
    await sink.close()


def rewritten(headers, host: str, port: str):
    kept = headers.copy()
    for name in ("Transfer-Encoding", "Content-Length", "Connection"):
        kept.popall(name, None)
    if "Location" in kept:
        kept["Location"] = re.sub("^[^/]+//[^/]+", "", kept["Location"])
    cookies = [re.sub(r"(?i);\s*(domain|path)[^;]*", "", cookie) for cookie in kept.popall("Set-Cookie", [])]
    for cookie in cookies:
        kept.add("Set-Cookie", re.sub("^([^;]+)", rf"\1; Path=/node/{host}/{port}", cookie, count=1))
    return kept


def shared_folder(folder: Path) -> Path:
    """What helpers.class_install makes, with this run's own environment in place of one to be installed."""
    names = class_install.files()
    materials.copy(ROOT, [name for name in names if name.startswith(("helpers/", "slurm/"))], folder)
    materials.write(ROOT, names, folder / "materials")
    class_install.add_kernel(folder)
    (folder / "class/servers").mkdir(parents=True)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copyfile(ROOT / "slurm/sites/testbed.env", folder / "slurm/sites/here.env")
    return folder
