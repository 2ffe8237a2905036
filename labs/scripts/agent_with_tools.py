"""A model that may call tools: it asks for a figure, the program computes it, the model goes on with the result.

python labs/scripts/agent_with_tools.py "How many H100 does Llama 3.1 70B need?" [--forced]

For a server that reads tool calls out of the model's text (`--enable-auto-tool-choice --tool-call-parser ...`), as
slurm/minimax-m2.1-tp4-h200.sbatch starts for MiniMax-M2.1. With `--forced` any model calls a tool, on any server: its first
turn must be one of all the calls there are (structured output), so the small Llama can be tried with it. What a model
calls that has not learned to is well formed, and not wise.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai
from openai import OpenAI

from helpers import memory, metrics
from helpers.client import connect, explain
from helpers.errors import WorkshopError

MODELS = ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "minimax-m2.1"]
GPUS = ["A100", "H100", "H200"]
TURNS = 6  # an agent that has not come to an end by then goes round in circles


def gpus_needed(model: str, gpu: str) -> str:
    """The fewest GPUs that hold a model and one request of 8,192 tokens, by helpers.memory."""
    plan = memory.fewest_gpus(memory.load(model), gpu, max_model_len=8192)
    return f"{plan.gpus} {gpu} ({plan.layout}), with room for {plan.kv_cache_tokens:,} tokens of KV cache"


def requests_running(client: OpenAI) -> str:
    """How busy this very server is, by its /metrics."""
    now = metrics.snapshot(client)
    return f"{now.running} requests running, {now.waiting} waiting, {now.kv_usage:.0%} of the KV cache in use"


def tool(name: str, about: str, **parameters: list[str]) -> dict[str, Any]:
    """A tool as the API describes it: every parameter is one of some words."""
    properties = {key: {"enum": words} for key, words in parameters.items()}
    rules = {"type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": rules}}


TOOLS = [
    tool("gpus_needed", "The fewest GPUs of a kind that hold a model, and its layout.", model=MODELS, gpu=GPUS),
    tool("requests_running", "How busy the server is at the moment."),
]


def calls() -> list[str]:
    """Every call that there is, as JSON: {"name": ..., "arguments": {...}}."""
    found = []
    for one in (one["function"] for one in TOOLS):
        rules = one["parameters"]["properties"]
        for words in itertools.product(*(rule["enum"] for rule in rules.values())):
            found.append(json.dumps({"name": one["name"], "arguments": dict(zip(rules, words, strict=True))}))
    return found


def functions(client: OpenAI) -> dict[str, Callable[..., str]]:
    return {"gpus_needed": gpus_needed, "requests_running": lambda: requests_running(client)}


def run(tools: dict[str, Callable[..., str]], name: str, arguments: str) -> str:
    """What a tool says; of a call that cannot be made, why: a model that reads it can try again."""
    if name not in tools:
        return f"error: there is no tool {name!r}; there are {', '.join(tools)}"
    try:
        return tools[name](**json.loads(arguments))
    except (TypeError, ValueError, WorkshopError) as error:
        return f"error: {error}"


def converse(client: OpenAI, question: str, *, forced: bool = False, max_tokens: int = 2000) -> Iterator[dict]:
    """The messages of the conversation as they come, from the question on; the last one is the model's answer.

    The model's own messages go back to it whole: MiniMax-M2.1 wants its thinking (<think> in the text) in the next turn.
    """
    model, tools = client.models.list().data[0].id, functions(client)
    messages: list[dict] = [{"role": "user", "content": question}]
    yield messages[0]
    for turn in range(TURNS):
        # Without a parser a call is text that we read ourselves, and what comes of it goes back as a user's words.
        options = {"extra_body": {"structured_outputs": {"choice": calls()}}} if turn == 0 else {}
        options = options if forced else {"tools": TOOLS}
        reply = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=200 if forced else max_tokens, **options
        )
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        yield messages[-1]
        wanted = [(one.id, one.function.name, one.function.arguments) for one in message.tool_calls or []]
        if forced and turn == 0:
            call = json.loads(message.content)
            wanted = [("", call["name"], json.dumps(call["arguments"]))]
        if not wanted:
            return
        for number, name, arguments in wanted:
            said = run(tools, name, arguments)
            result = {"role": "tool", "tool_call_id": number, "content": said}
            messages.append({"role": "user", "content": f"{name}: {said}"} if forced else result)
            yield messages[-1]


def shown(message: dict) -> str:
    wanted = [f"{one['function']['name']}({one['function']['arguments']})" for one in message.get("tool_calls") or []]
    return f"{message['role']}: {' '.join([message.get('content') or '', *wanted])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument(
        "--forced", action="store_true", help="the first turn is a call, whatever the model has learned"
    )
    options = parser.parse_args()
    try:
        for message in converse(connect(quiet=True), options.question, forced=options.forced):
            print(shown(message), flush=True)
    except openai.APIError as error:
        print(explain(error), file=sys.stderr)
        return 1
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
