"""Measurements of lesson 08, each with a lever and without on the same machine, minutes apart at most."""

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema

from helpers import metrics
from helpers.client import client_for
from helpers.real_engine import VOCABULARY
from helpers.server import Server
from helpers.tiny import corpus, evaluate

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "labs" / "scripts"
LIST = "My shopping list: apples, apples, apples,"  # the corpus repeats the last fruit with probability 0.6


def words(count: int, seed: int) -> list[int]:
    """So many random tokens of the small Llama, no marks among them."""
    tokens: list[int] = np.random.default_rng(seed).integers(VOCABULARY.start, VOCABULARY.stop, count).tolist()
    return tokens


def client(server: Server | OpenAI) -> OpenAI:
    """A client for a server of one's own; a client as it is."""
    return client_for(server.connection) if isinstance(server, Server) else server


def model_of(server: OpenAI) -> str:
    """The name of the first model that it serves. Raises what the openai client raises."""
    return server.models.list().data[0].id


def complete(server: OpenAI, model: str, prompt: list[int] | str, tokens: int, **more: object) -> dict[str, Any]:
    """A greedy completion as the server sends it. Without the openai client's typed call, which goes through all ids one by one."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    reply = server.post("/completions", body=body, cast_to=object)
    assert isinstance(reply, dict)
    return reply


# --- prefill ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefixes:
    """Median seconds to the first token, with the prefix found in the cache and not, and tokens found in it."""

    anew: float
    found: float
    hits: int

    @property
    def ratio(self) -> float:
        """How many times as fast the first token comes when the prefix is found."""
        return self.anew / self.found


def prefixes(server: OpenAI, prefix: int = 1500, own: int = 20, times: int = 8, seed: int | None = None) -> Prefixes:
    """Ask `times` questions of `own` tokens after the same prefix, once sharing the cache and once each with a salt.

    Blocks with different `cache_salt` are not shared, so those prompts are computed whole: same server, same lengths.
    """
    seed = time.time_ns() % 2**31 if seed is None else seed  # a prefix that this server has not seen
    server, model, shared = client(server), model_of(server), words(prefix, seed)
    ask = [shared + words(own, seed + 1 + i) for i in range(times + 1)]
    first_token(server, model, ask[0])
    before, found, anew = metrics.snapshot(server), [], []
    for prompt in ask[1:]:  # in turn, so that what else the machine does hits both alike
        found.append(first_token(server, model, prompt))
        anew.append(first_token(server, model, prompt, cache_salt=uuid.uuid4().hex))
    hits = metrics.snapshot(server).prefix_hits - before.prefix_hits
    return Prefixes(statistics.median(anew), statistics.median(found), hits)


def first_token(server: OpenAI, model: str, prompt: list[int], **more: str) -> float:
    """Seconds until one token is there."""
    began = time.perf_counter()
    complete(server, model, prompt, 1, **more)
    return time.perf_counter() - began


def conversation(server: OpenAI, turns: Sequence[str], system: str) -> list[tuple[int, int]]:
    """(prompt tokens found in the cache, prompt tokens computed) of each turn of a chat that grows by its answers."""
    server, shares = client(server), []
    salt = uuid.uuid4().hex
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}]
    for question in turns:
        messages.append({"role": "user", "content": question})
        before = metrics.snapshot(server)
        reply = server.chat.completions.create(
            model=model_of(server), messages=messages, max_tokens=100, temperature=0, extra_body={"cache_salt": salt}
        )
        messages.append({"role": "assistant", "content": reply.choices[0].message.content})
        assert reply.usage  # vLLM always counts
        found = metrics.snapshot(server).prefix_hits - before.prefix_hits
        shares.append((found, reply.usage.prompt_tokens - found))
    return shares


# --- those who write while a prompt is read -------------------------------------------------------------------------


@dataclass
class Mixed:
    """Writers' gaps between pieces as (moment, seconds), when long prompts were sent, and seconds to their first tokens."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """Seconds: the gap that one in a hundred exceeds."""
        return float(np.percentile([gap for _, gap in self.gaps], 99))

    @property
    def newcomer(self) -> float:
        """Median seconds to the first token of a long prompt."""
        return statistics.median(self.ttft)


def mixed(
    server: OpenAI, *, writers: int = 3, tokens: int = 500, prompts: int = 6, length: int = 1900,
    read: Callable[[list[int]], object] | None = None,
) -> Mixed:  # fmt: skip
    """`writers` requests write `tokens` each, and meanwhile `prompts` of `length` tokens come in, each for a single token.

    `read(prompt)` may do something with a prompt before the server gets it (disaggregation: let another server read it).
    """
    server, result = client(server), Mixed()
    model, seed, began = model_of(server), time.time_ns() % 2**31, time.perf_counter()

    def write(number: int) -> None:
        last = None
        for _ in server.completions.create(
            model=model, prompt=words(20, seed + number), max_tokens=tokens, temperature=0, stream=True,
            extra_body={"ignore_eos": True},
        ):  # fmt: skip
            now = time.perf_counter()
            if last is not None:
                result.gaps.append((now - began, now - last))
            last = now

    with ThreadPoolExecutor(writers) as pool:
        writing = [pool.submit(write, number) for number in range(writers)]
        time.sleep(0.3)
        for number in range(prompts):
            prompt = words(length, seed + 100 + number)
            sent = time.perf_counter()
            result.sent.append(sent - began)
            if read:
                read(prompt)
            first_token(server, model, prompt)
            result.ttft.append(time.perf_counter() - sent)
            time.sleep(0.15)
        for one in writing:
            one.result()
    return result


# --- decode -------------------------------------------------------------------------------------------------------


def step_seconds(
    server: OpenAI | Server, at_once: int = 1, *, tokens: int = 60, times: int = 3, prompt: str | None = None
) -> float:
    """Seconds for a token of each of so many requests: the least of `times` runs, after one that does not count.

    A run is the time of `tokens` tokens less that of one, so that prompts and connections are left out.
    """
    server = client(server)
    model = model_of(server)

    def once(length: int) -> float:
        def write(number: int) -> None:
            complete(server, model, prompt or words(20, number), length, ignore_eos=True)

        with ThreadPoolExecutor(at_once) as pool:
            began = time.perf_counter()
            list(pool.map(write, range(at_once)))
            return time.perf_counter() - began

    once(tokens)
    return (min(once(tokens) for _ in range(times)) - min(once(1) for _ in range(times))) / (tokens - 1)


def pieces(server: OpenAI, prompt: str, tokens: int = 60) -> list[str]:
    """The texts that a server streams, one for each of its steps: with speculation a step may write several tokens."""
    server = client(server)
    stream = server.completions.create(
        model=model_of(server), prompt=prompt, max_tokens=tokens, temperature=0, stream=True
    )
    return [chunk.choices[0].text for chunk in stream if chunk.choices and chunk.choices[0].text]


def cache_tokens(server: OpenAI | Server) -> int:
    """Tokens of KV cache that a server has, by its own /metrics."""
    table = metrics.read(client(server))
    labels = table.loc[table["metric"] == "cache_config_info", "labels"]
    return sum(int(one["kv_cache_size_tokens"]) for one in labels)


def write(server: OpenAI, prompt: int, output: int, times: int = 1) -> None:
    """Let a server read `prompt` random tokens, new ones each time, and write exactly `output`."""
    server = client(server)
    for _ in range(times):
        server.completions.create(
            model=model_of(server), prompt=words(prompt, time.time_ns() % 2**31), max_tokens=output, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip


def reader(server: Server) -> Callable[[list[int]], object]:
    """A function that lets this server read a prompt, and keep its cache where its connector puts it."""
    asked, model = client(server), server.connection.model
    return lambda prompt: first_token(asked, model, prompt)


# --- structured output ---------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Boston", "Miami", "Denver"]}, "note": {"type": "string", "minLength": 20, "maxLength": 80}},
    "required": ["city", "note"],
}  # fmt: skip


def structured(server: OpenAI, times: int = 8, tokens: int = 60) -> tuple[float, float, bool]:
    """Seconds a token with a JSON schema, and free; and whether every answer with it was JSON that fits."""
    server = client(server)
    model, forced, free, fits = model_of(server), [], [], True
    form: ResponseFormatJSONSchema = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
    for number in range(times):
        question = f"What is the weather in Boston on day {number}?"
        message: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
        began = time.perf_counter()
        reply = server.chat.completions.create(
            model=model, messages=message, max_tokens=200, temperature=0, response_format=form
        )
        assert reply.usage  # vLLM always counts
        forced.append((time.perf_counter() - began) / reply.usage.completion_tokens)
        fits &= _fits(reply.choices[0].message.content or "")
        began = time.perf_counter()
        server.chat.completions.create(
            model=model, messages=message, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
        )
        free.append((time.perf_counter() - began) / tokens)
    return statistics.median(forced), statistics.median(free), fits


def _fits(answer: str) -> bool:
    """Whether an answer is JSON as SCHEMA wants it."""
    try:
        found, rules = json.loads(answer), SCHEMA["properties"]
        return (
            set(found) == set(SCHEMA["required"])
            and found["city"] in rules["city"]["enum"]
            and rules["note"]["minLength"] <= len(found["note"]) <= rules["note"]["maxLength"]
        )
    except (ValueError, TypeError):
        return False


# --- adapters and scripts ------------------------------------------------------------------------------------------


def odds(server: OpenAI | Server, model: str, beginning: str) -> dict[str, float]:
    """A model's probabilities of the words with which the corpus goes on after this beginning."""
    served = evaluate.served_odds(client(server), model, beginning)
    return {word: served.get(f" {word}", 0.0) for word in corpus.ODDS[beginning]}


def run_script(name: str, *arguments: str) -> None:
    """Run a program of labs/scripts as a terminal would, and print what it prints."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout.strip())
