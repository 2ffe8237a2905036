"""A proxy on loopback between a client and a real server, which spoils the answers of those requests that ask for it.

A request names its fault in the API's field `user`; with `fault:2` the first two that name it are spoiled and later ones
pass. What comes from the server is real: a fault delays, damages or cuts it, or answers in its place.
"""

import http.server
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager

import urllib3

STATUS = {"busy": 429, "failing": 503, "forbidden": 403}
PIECES = 3  # what passes of a stream before it is spoiled
STALL_SECONDS = 30


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream, pool, seen = "", urllib3.PoolManager(maxsize=64), Counter()
    over = threading.Event()

    def do_GET(self):
        answer = self.pool.request("GET", self.upstream + self.path, headers=self._forwarded())
        self._whole(answer.status, answer.data, answer.headers.get("content-type", ""))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        fault, _, times = json.loads(body).get("user", "").partition(":")
        self.seen[fault] += 1
        if fault and times and self.seen[fault] > int(times):
            fault = ""
        if fault in STATUS:
            said = {"error": {"message": f"the gateway is {fault}", "code": STATUS[fault]}}
            return self._whole(STATUS[fault], json.dumps(said).encode(), "application/json", **{"Retry-After": "0"})
        if fault == "page":
            return self._whole(200, b"<html><body>Please log in.</body></html>", "text/html")
        if fault == "reset":
            self.close_connection = True
            return self.connection.close()
        if fault == "mute":
            self.over.wait(STALL_SECONDS)
        self._stream(body, fault)

    def _stream(self, body: bytes, fault: str):
        """Pass the server's answer on, event by event, until the fault comes."""
        answer = self.pool.request(
            "POST", self.upstream + self.path, body=body, headers=self._forwarded(), preload_content=False
        )
        if answer.status != 200:
            return self._whole(answer.status, answer.data, "application/json")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number, data in enumerate(answer.read_chunked()):
                if number == PIECES and not self._spoil(fault):
                    return
                if fault == "crlf":  # the standard allows it, and comments, and data in several lines
                    data = b": still here\r\n\r\n" + data.replace(b"\n", b"\r\n")
                for part in [data[:7], data[7:]] if fault == "crumbs" else [data]:
                    self._chunk(part)
            self._chunk(b"")
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            answer.close()

    def _spoil(self, fault: str) -> bool:
        """Whether the stream goes on."""
        if fault == "stall":
            self.over.wait(STALL_SECONDS)
        elif fault == "slow":
            time.sleep(1)
        elif fault == "garbled":
            self._chunk(b'data: {"choices": [{"text": "half a pie\n\n')
        elif fault == "foreign":
            self._chunk(b'data: {"generated_text": "another API"}\n\n')
        elif fault == "reported":
            self._chunk(b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n')
        elif fault in ("cut", "ended"):
            if fault == "ended":  # in good order, and yet not whole
                self._chunk(b"")
            self.close_connection = True
            self.connection.shutdown(2)
            return False
        return True

    def _chunk(self, data: bytes):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _whole(self, status: int, data: bytes, kind: str, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _forwarded(self) -> dict[str, str]:
        wanted = ("authorization", "content-type")
        return {name: value for name, value in self.headers.items() if name.lower() in wanted}

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):  # a client that hung up is what many of these tests are about
        pass


@contextmanager
def fault_proxy(base_url: str):
    """The base URL of a proxy to the server at `base_url`, and the Counter of the faults asked for."""
    handler = type("Spoiler", (Handler,), {"upstream": base_url.removesuffix("/").removesuffix("/v1"), "seen": Counter(), "over": threading.Event()})  # fmt: skip
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", handler.seen
        finally:
            handler.over.set()
            server.shutdown()
