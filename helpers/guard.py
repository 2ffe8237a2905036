"""Ask for the API key on every route of a vLLM server but /health.

vLLM's own --api-key guards /v1 and leaves open others that generate (/invocations) or tell (/metrics, /tokenize, /docs).
`vllm serve ... --middleware helpers.guard.RequireKey` closes them. Loaded by the server itself: the standard library alone.
"""

import json
import os
import secrets

OPEN = {"/health"}  # says whether the engine lives, and nothing else; load balancers and probes have no key
REFUSAL = json.dumps({"error": {"message": "This server asks for its API key.", "type": "Unauthorized", "code": 401}})


class RequireKey:
    """ASGI middleware: 401 for a request without `Authorization: Bearer KEY`, where KEY is VLLM_API_KEY.

    Raises RuntimeError when VLLM_API_KEY is not set: a guard without a key would guard nothing.
    """

    def __init__(self, app):
        self.app = app
        if not os.environ.get("VLLM_API_KEY"):
            raise RuntimeError("helpers.guard.RequireKey needs the key in VLLM_API_KEY.")
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._has_key(scope):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL.encode()})

    def _has_key(self, scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, self.expected)
