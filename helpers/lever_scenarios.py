"""Four workloads in small, and what each lever does to them on the servers at hand: chat, long documents, labels, agent."""

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pandas as pd
from openai import OpenAI

from helpers.lever_lesson import LIST, client, complete, model_of, words
from helpers.server import Server

PREFIX, AT_ONCE, GUESSES = "prefix caching", "all at once", "n-gram speculation"
FRUIT = ("apples", "pears", "plums", "grapes", "lemons")
LEVERS = (PREFIX, AT_ONCE, GUESSES)


@dataclass(frozen=True)
class Workload:
    """Prompts as token ids or texts, tokens of each answer, and whether a request must wait for the answer before it."""

    prompts: tuple[list[int] | str, ...]
    output: int
    in_turn: bool = True


def workloads(seed: int) -> dict[str, Workload]:
    """The four, by name, of random tokens that `seed` decides.

    Chat: a system prompt of 1,200 tokens and eight turns of 60. Documents: six questions on 1,500 tokens. Labels: 48
    sentences, one word each. Agent: five turns that each write a list, the same words again and again.
    """
    system, document = words(1200, seed), words(1500, seed + 1)
    turns = words(8 * 60, seed + 2)
    return {
        "chatbot": Workload(tuple(system + turns[: 60 * n] for n in range(1, 9)), 5),
        "long documents": Workload(tuple(document + words(20, seed + 30 + n) for n in range(6)), 5),
        "batch labelling": Workload(tuple(words(12, seed + 50 + n) for n in range(48)), 1, in_turn=False),
        "agent with tools": Workload(tuple(LIST.replace("apples", fruit) for fruit in FRUIT), 70),
    }


def seconds(server: OpenAI | Server, work: Workload, *, share: bool = False, at_once: int = 1) -> float:
    """Seconds for all of it. Without `share` every request has a salt of its own, and finds nothing in the cache."""
    server = client(server)
    model, salt = model_of(server), uuid.uuid4().hex

    def ask(prompt: list[int] | str) -> None:
        own = salt if share else uuid.uuid4().hex
        complete(server, model, prompt, work.output, ignore_eos=True, cache_salt=own)

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, work.prompts))
    return time.perf_counter() - began


def measure(plain: OpenAI | Server, guessing: OpenAI | Server, *, times: int = 2, seed: int = 0) -> pd.DataFrame:
    """How many times as fast each workload is with each lever; missing where the lever cannot be pulled.

    Least seconds of `times` runs, the variants in turn. Requests that wait for an answer cannot all be sent at once.
    """
    rows = {}
    for name, work in workloads(seed).items():
        variants: dict[str, Callable[[], float]] = {
            "plain": partial(seconds, plain, work),
            PREFIX: partial(seconds, plain, work, share=True),
            GUESSES: partial(seconds, guessing, work),
        }
        if not work.in_turn:
            variants[AT_ONCE] = partial(seconds, plain, work, at_once=16)
        took = _least(variants, times)
        rows[name] = {lever: took["plain"] / took[lever] if lever in took else float("nan") for lever in LEVERS}
    return pd.DataFrame.from_dict(rows, orient="index")


def worth(found: pd.DataFrame, least: float = 1.8) -> dict[str, set[str]]:
    """The levers that made a workload at least so many times as fast."""
    return {name: {lever for lever in found if row[lever] >= least} for name, row in found.iterrows()}


def _least(variants: dict[str, Callable[[], float]], times: int) -> dict[str, float]:
    rounds: Sequence[dict[str, float]] = [{name: run() for name, run in variants.items()} for _ in range(times)]
    return {name: min(one[name] for one in rounds) for name in variants}
