"""How a load test talks to a server: where to, and over which connections.

The openai client is made for ease: a request costs it 1.6 ms of CPU and each piece of a stream 0.25 ms, where urllib3 and a
parser of our own take 0.5 and 0.07 (openai 3.54, 64 threads; `python -m tests.benchmarks --load` compares them). With many
requests in flight that cost takes the processor from a server nearby, and waits of our own would pass for the server's.
So a load test takes address, key, timeout and proxies from the openai client, sends with urllib3 or aiohttp, and parses
the stream itself.
"""

import socket
import threading
import time
import urllib.request
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import urllib3
from openai import OpenAI
from urllib3 import exceptions
from urllib3.util import parse_url

from helpers.load_records import Record
from helpers.load_stream import Reader, lost, status_error, timed_out

ROUTES = ("completions", "chat/completions")
CONNECT_SECONDS = 10
NO_CONNECTION = (exceptions.ConnectTimeoutError, exceptions.SSLError, exceptions.ProxyError)
now = time.monotonic  # the clock of helpers.metrics' snapshots, so that both can share a picture


@dataclass(frozen=True)
class Target:
    """A server as a load test needs it: base URL with a slash at the end, headers, seconds of patience, a proxy or None."""

    url: str
    headers: dict[str, str]
    timeout: float
    proxy: str | None = None

    @classmethod
    def of(cls, client: OpenAI) -> "Target":
        """Where this client sends to, with its key, timeout (600 s where it has none) and proxy."""
        url = str(client.base_url)
        headers = {k: v for k, v in client.default_headers.items() if isinstance(v, str) and "Stainless" not in k}
        timeout = client.timeout
        if isinstance(timeout, httpx2.Timeout):
            timeout = timeout.read
        trusts = client._client.trust_env  # whether the environment's proxies are for this server, see client_for
        return cls(url, headers | client.auth_headers, timeout or 600.0, _proxy(url) if trusts else None)

    def path(self, route: str) -> str:
        """What to ask for: the path, and for a proxy that is to fetch it the whole address."""
        whole = self.proxy and self.url.startswith("http:")
        return self.url + route if whole else (parse_url(self.url).path or "/") + route

    def pool(self, connections: int) -> urllib3.HTTPConnectionPool:
        """Connections to this server, as many as are kept for the next request."""
        timeout = urllib3.Timeout(connect=min(CONNECT_SECONDS, self.timeout), read=self.timeout)
        options: dict[str, Any] = {"maxsize": connections, "timeout": timeout, "retries": False}
        manager = urllib3.ProxyManager(self.proxy, **options) if self.proxy else urllib3.PoolManager(**options)
        return manager.connection_from_url(self.url)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this address."""
    parts = parse_url(url)
    if not parts.host or urllib.request.proxy_bypass(parts.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme or "http") or proxies.get("all")


class Lines:
    """The connections of a load test's threads to one server; `stopped` is set once they are broken off."""

    def __init__(self, client: OpenAI, most: int):
        self._target, self.stopped = Target.of(client), threading.Event()
        self._pool = self._target.pool(most)
        self._paths = {route: self._target.path(route) for route in ROUTES}
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock, self._make = threading.Lock(), self._pool.ConnectionCls
        self._pool.ConnectionCls = self._remembered  # type: ignore[assignment]  # urllib3 only calls it

    def _remembered(self, *args: Any, **options: Any) -> Any:
        """A new connection; those that are made are kept in mind, to be broken off."""
        connection = self._make(*args, **options)
        with self._lock:
            self._made.add(connection)
        return connection

    def stream(self, route: str, body: bytes, record: Record, sent: float) -> None:
        """Send one request and fill its record while the answer comes; `sent` is now() of the first try.

        Raises the openai client's errors, or StreamError.
        """
        reader, response = Reader(record, sent), None
        try:
            options = {"redirect": False, "preload_content": False, "assert_same_host": False}
            response = self._pool.urlopen("POST", self._paths[route], body, self._target.headers, **options)
            if response.status != 200:
                raise status_error(response.status, response.data, response.headers.get("retry-after"))
            for data in response.stream():
                reader.feed(data, now())
            reader.finish()
        except exceptions.ReadTimeoutError:
            raise timed_out() from None
        except NO_CONNECTION as error:
            raise lost() from ConnectionRefusedError(str(error))
        except exceptions.HTTPError as error:
            raise lost() from ConnectionResetError(str(error))
        finally:
            reader.keep()
            if response is not None:
                response.release_conn() if reader.done else response.close()

    def break_off(self) -> None:
        """End all connections, whatever they wait for: vLLM sends nothing, not even headers, before a first token."""
        self.stopped.set()
        with self._lock:
            made = list(self._made)
        for connection in made:
            with suppress(OSError, AttributeError):  # it may be closed already, or not yet open
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections that wait for another request."""
        self._pool.close()
