"""Measure the served small Llama against what its corpus promises:  python -m helpers.tiny.evaluate

Odds: the total variation distance between exp(logprob) and the corpus odds, for every beginning in odds.json.
Answers: how many of 100 in-domain and 10 off-topic questions, none seen word for word in training, get the reference
answer under greedy decoding.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

from helpers.client import connect
from helpers.logprobs import LogprobsError
from helpers.tiny import corpus


def served_odds(client: OpenAI, model: str, beginning: str, top: int = 20) -> dict[str, float]:
    """The server's probabilities of the `top` most likely next tokens, by token text.

    Raises LogprobsError for a server that does not tell them.
    """
    reply = client.completions.create(model=model, prompt=beginning, max_tokens=1, temperature=0, logprobs=top)
    logprobs = reply.choices[0].logprobs
    if logprobs is None or not logprobs.top_logprobs:
        raise LogprobsError(
            f"The server of {model} tells no logprobs: use the workshop's vLLM, or one that gives {top}."
        )
    return {token: math.exp(logprob) for token, logprob in logprobs.top_logprobs[0].items()}


def total_variation(served: Mapping[str, float], odds: Mapping[str, float]) -> float:
    """Half the sum of |served - odds| over all tokens; what the server gives to unlisted tokens counts in full."""
    listed = sum(abs(served.get(f" {word}", 0.0) - share) for word, share in odds.items())
    unlisted = 1 - sum(served.get(f" {word}", 0.0) for word in odds)
    return (listed + unlisted) / 2


def distances(client: OpenAI, model: str) -> dict[str, float]:
    """Total variation distance (0-1) for every beginning in the corpus's table. Raises what served_odds raises."""
    return {start: total_variation(served_odds(client, model, start), odds) for start, odds in corpus.ODDS.items()}


def greedy_answer(client: OpenAI, model: str, question: str) -> str:
    """The answer in at most 100 tokens, always the most probable one."""
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=100
    )
    return (reply.choices[0].message.content or "").strip()


def wrong_answers(client: OpenAI, model: str, asked: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(question, answer, reference) of the questions that the model answers in other words than the reference."""
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda pair: greedy_answer(client, model, pair[0]), asked)
    return [
        (q, answer, reference) for (q, reference), answer in zip(asked, answers, strict=True) if answer != reference
    ]


def main() -> None:
    """Prints the distances, the shares of right answers, and each wrong one beside its reference."""
    client = connect()
    model = client.models.list().data[0].id
    found = distances(client, model)
    worst = max(found, key=found.__getitem__)
    print(
        f"odds: {len(found)} distributions, mean distance {sum(found.values()) / len(found):.4f}, worst {found[worst]:.4f} ({worst} ...)"
    )
    for title, asked in [("in domain", corpus.held_out_questions()), ("off topic", corpus.off_topic_questions())]:
        missed = wrong_answers(client, model, asked)
        print(f"answers {title}: {len(asked) - len(missed)} of {len(asked)} right")
        for question, answer, reference in missed:
            print(f"  {question}\n    said:      {answer}\n    reference: {reference}")


if __name__ == "__main__":
    main()
