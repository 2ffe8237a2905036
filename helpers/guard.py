"""Ask for an API key on every route of a vLLM server but /health.

vLLM's own --api-key guards /v1 and leaves open others that generate (/invocations) or tell (/metrics, /tokenize, /docs).
`vllm serve ... --middleware helpers.guard.RequireKey` closes them. Loaded by the server itself: the standard library alone.

For a class, with SERVE_CLASS naming its folder, every key registered there (registered_keys) opens what a lesson needs.
vLLM takes several keys too, `--api-key A B`, but reads them once, from a command line that everybody on the node can see:
nobody could come late or be shut out while it runs. It sees only the server's own key, whichever was given to us.
"""

import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from helpers.registered_keys import RegisteredKeys

OPEN = {"/health"}  # says whether the engine lives, and nothing else; load balancers and probes have no key
#: What a class's keys open. The rest stops, scales or profiles the server for everybody: it takes the server's own key.
FOR_CLASS = {"/metrics", "/tokenize", "/detokenize", "/version", "/load", "/ping", "/docs", "/openapi.json"}
FOR_CLASS_BELOW = "/v1/"
NO_KEY = (401, "This server asks for its API key.")
NOT_FOR_CLASS = (403, "A class's keys do not open this route: it concerns the whole server.")


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]  # of ASGI: a request's scope, what it sends, what it gets


class RequireKey:
    """ASGI middleware: 401 for a request without `Authorization: Bearer KEY`, where KEY is VLLM_API_KEY or a class's.

    Raises RuntimeError when VLLM_API_KEY is not set: a guard without a key would guard nothing.
    """

    def __init__(self, app: App):
        self.app = app
        if not os.environ.get("VLLM_API_KEY"):
            raise RuntimeError("helpers.guard.RequireKey needs the key in VLLM_API_KEY.")
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()
        served = os.environ.get("SERVE_CLASS")
        self.class_keys = RegisteredKeys(os.path.join(served, "keys")) if served else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the server, or refuse it: 401 for no key, 403 for one that does not open this route."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self.expected):
            return await self.app(scope, receive, send)
        if not (self.class_keys and given.startswith(b"Bearer ") and await self.class_keys.hold(given[7:])):
            return await _refuse(scope, send, *NO_KEY)
        if not (scope["path"] in FOR_CLASS or scope["path"].startswith(FOR_CLASS_BELOW)):
            return await _refuse(scope, send, *NOT_FOR_CLASS)
        headers = [header for header in scope["headers"] if header[0] != b"authorization"]
        return await self.app({**scope, "headers": [*headers, (b"authorization", self.expected)]}, receive, send)


async def _refuse(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    kind = "Unauthorized" if status == 401 else "Forbidden"
    body = json.dumps({"error": {"message": reason, "type": kind, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
