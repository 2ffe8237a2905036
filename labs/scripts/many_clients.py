"""Many clients at once: tokens a second and waiting times of the server at hand, for 1, 4 and 16 requests in flight.

python labs/scripts/many_clients.py [1 4 16] [--requests N] [--tokens 64]
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

from helpers.client import connect
from helpers.errors import WorkshopError

QUESTION = "Explain to a student what a KV cache is."


def ask(client: OpenAI, model: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the last of one streamed answer of exactly `tokens` tokens."""
    began = time.perf_counter()
    first = None
    stream = client.completions.create(
        model=model, prompt=QUESTION, max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in stream:
        first = first or time.perf_counter()
    return first - began, time.perf_counter() - began


def measure(client: OpenAI, model: str, at_once: int, requests: int, tokens: int) -> str:
    """A row of the table: `requests` requests from `at_once` threads; each thread sends its next when it has its answer."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        times = list(threads.map(lambda _: ask(client, model, tokens), range(requests)))
    seconds = time.perf_counter() - began
    to_first = statistics.median(first for first, _ in times)
    whole = sorted(last for _, last in times)
    slowest = whole[int(0.95 * (len(whole) - 1))]
    return (
        f"{at_once:8} {requests:9} {seconds:9.1f} {requests * tokens / seconds:10.0f} "
        f"{to_first * 1000:17.0f} {statistics.median(whole):13.2f} {slowest:10.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("at_once", nargs="*", type=int, default=[1, 4, 16], help="requests in flight")
    parser.add_argument(
        "--requests", type=int, help="in all, for each row; default: two for each client, and at least 8"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    options = parser.parse_args()
    try:
        client = connect()
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    model = client.models.list().data[0].id
    ask(client, model, options.tokens)  # the first request pays for starting up
    print(" at once  requests   seconds   tokens/s   first token, ms   median, s   95%, s")
    for at_once in options.at_once:
        print(measure(client, model, at_once, options.requests or max(8, 2 * at_once), options.tokens), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
