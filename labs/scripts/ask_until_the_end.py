"""Four clients that ask one question after another until the server takes no more: was any answer cut off?

python labs/scripts/ask_until_the_end.py [--tokens 400]
"""

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai

from helpers.client import connect, explain
from helpers.errors import WorkshopError


def ask_until_refused(client: openai.OpenAI, model: str, tokens: int) -> tuple[Counter, str]:
    """How many answers ended for which reason, and in a sentence why the last request got none."""
    ends = Counter()
    while True:
        try:
            reply = client.completions.create(
                model=model, prompt="Tell me", max_tokens=tokens, extra_body={"ignore_eos": True}
            )
        except openai.APIError as error:
            return ends, explain(error)
        whole = reply.usage.completion_tokens == tokens
        ends["whole" if whole else f"cut off ({reply.choices[0].finish_reason})"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=400, help="of each answer")
    options = parser.parse_args()
    try:
        client = connect()
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    model = client.models.list().data[0].id
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: ask_until_refused(client, model, options.tokens), range(4)))
    ends = sum((one for one, _ in results), Counter())
    print("answers:", ", ".join(f"{count} {how}" for how, count in ends.items()) or "none")
    print("then:", "; ".join(sorted({why for _, why in results})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
