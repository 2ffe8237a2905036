"""A Hugging Face Hub on this machine, small but real: huggingface_hub's own client downloads from it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a_token_that_no_log_may_show"


def split_model(source: Path, folder: Path, count: int) -> Path:
    """The model of a folder as a repository would hold it: in `count` shards, beside the same weights in other formats."""
    folder.mkdir(parents=True)
    for path in source.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = sorted(load_file(source / "model.safetensors").items())
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    where = {}
    for n, shard in enumerate(names):
        mine = dict(tensors[n::count])
        save_file(mine, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "original").mkdir()
    for duplicate in ("pytorch_model.bin", "original/consolidated.00.pth"):
        (folder / duplicate).write_bytes(b"the same weights again")
    return folder


class Hub:
    """Serves folders as models. `gated` ones want TOKEN; files named in `held` stop half-way until release() is called."""

    def __init__(self, models: dict[str, Path], address: str = "0.0.0.0"):
        self.models, self.gated, self.held = models, set(), set()
        self.sent, self.reached, self._go = [], threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer((address, 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def release(self):
        self.held.clear()
        self._go.set()

    def close(self):
        self.release()
        self.server.shutdown()
        self.server.server_close()

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = unquote(urlsplit(self.path).path)
                is_call = path.startswith("/api/models/")
                owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
                model = f"{owner}/{name}"
                if model not in hub.models:
                    return self.refuse(401, "RepoNotFound")
                needs_token = model in hub.gated and (not is_call or rest == ["auth-check"])
                if needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse(401, "GatedRepo")
                if is_call:
                    return self.tell(model, hub.models[model], rest)
                return self.send_file(hub.models[model] / "/".join(rest[2:]))  # resolve/COMMIT/FILE

            def refuse(self, status, code):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def tell(self, model, folder, rest):
                files = [
                    (str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
                ]
                siblings = [{"rfilename": name, "size": size} for name, size in files]
                tree = [{"type": "file", "path": name, "size": size, "oid": f"{size:040x}"} for name, size in files]
                answer = tree if rest[:1] == ["tree"] else {"id": model, "sha": COMMIT, "siblings": siblings}
                body = json.dumps({} if rest == ["auth-check"] else answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def send_file(self, path):
                body = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{len(body):040x}"')
                self.end_headers()
                if self.command == "HEAD":
                    return
                half = len(body) // 2
                self.wfile.write(body[:half])
                if path.name in hub.held:
                    self.wfile.flush()
                    hub.reached.set()
                    hub._go.wait(120)
                self.wfile.write(body[half:])
                hub.sent.append(path.name)

        return Handler
