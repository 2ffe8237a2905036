"""A model that may call tools: it asks for a figure, the program computes it, the model goes on with the result.

python labs/scripts/agent_with_tools.py "How many H100 does Llama 3.1 70B need?" [--tool-choice required]

For a server with a parser for tool calls, such as slurm/minimax-m2.1-tp4-h200.sbatch starts. A model that has not learned
to call tools can be made to: with `--tool-choice required` the server lets it write nothing but a call that fits the
schema (structured output), and then answers without. What such a model calls is well formed, and rarely wise.
"""

import argparse
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
    """The fewest GPUs that hold a model, by helpers.memory."""
    plan = memory.fewest_gpus(memory.load(model), gpu)
    return f"{plan.gpus} x {gpu}: {plan.layout}, room for {plan.kv_cache_tokens:,} tokens of KV cache"


def requests_running(client: OpenAI) -> str:
    """How busy this very server is, by its /metrics."""
    now = metrics.snapshot(client)
    return f"{now.running} requests running, {now.waiting} waiting, {now.kv_usage:.0%} of the KV cache in use"


def schema(name: str, about: str, **parameters: list[str]) -> dict[str, Any]:
    """A tool as the API describes it: every parameter is one of some words."""
    properties = {key: {"type": "string", "enum": words} for key, words in parameters.items()}
    rules = {"type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": rules}}


TOOLS = [
    schema("gpus_needed", "The fewest GPUs of a kind that hold a model, and its layout.", model=MODELS, gpu=GPUS),
    schema("requests_running", "How busy the server is at the moment."),
]


def functions(client: OpenAI) -> dict[str, Callable[..., str]]:
    return {"gpus_needed": gpus_needed, "requests_running": lambda: requests_running(client)}


def call(tools: dict[str, Callable[..., str]], name: str, arguments: str) -> str:
    """What a tool says; of a call that cannot be made, why: a model that reads it can try again."""
    try:
        return tools[name](**json.loads(arguments))
    except KeyError as error:
        return f"error: there is no {error}; there are {', '.join(tools)} with the models {', '.join(MODELS)}"
    except (TypeError, ValueError, WorkshopError) as error:
        return f"error: {error}"


def converse(client: OpenAI, question: str, *, tool_choice: str = "auto", max_tokens: int = 1000) -> Iterator[dict]:
    """The messages of the conversation, each as soon as it is there; the last one is the model's answer.

    The model's own messages go back to it whole: MiniMax-M2.1 wants its thinking (<think> in the text) in the next turn.
    """
    model, tools = client.models.list().data[0].id, functions(client)
    messages: list[dict] = [{"role": "user", "content": question}]
    for turn in range(TURNS):
        choice = tool_choice if turn == 0 or tool_choice == "auto" else "none"
        reply = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=max_tokens, temperature=0
        )
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        yield messages[-1]
        if not message.tool_calls:
            return
        for wanted in message.tool_calls:
            said = call(tools, wanted.function.name, wanted.function.arguments)
            messages.append({"role": "tool", "tool_call_id": wanted.id, "content": said})
            yield messages[-1]


def shown(message: dict) -> str:
    calls = [f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or []]
    return f"{message['role']}: " + (message.get("content") or "") + ("; ".join(calls) and f" calls {'; '.join(calls)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument(
        "--tool-choice", choices=("auto", "required"), default="auto", help="required: the first turn is a call"
    )
    options = parser.parse_args()
    try:
        for message in converse(connect(), options.question, tool_choice=options.tool_choice):
            print(shown(message))
    except openai.APIError as error:
        print(explain(error), file=sys.stderr)
        return 1
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
