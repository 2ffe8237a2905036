"""The tables of the slides on optimisation: levers, what they are for, and what they did when they were measured."""

import pandas as pd

from helpers import lever_data, levers

SHOWN = (
    "compiled steps and CUDA graphs", "FP8 weights, made while loading", "FP8 KV cache", "tensor parallelism",
    "data parallelism", "a token budget of 512, not 8,192", "n-gram guesses, none right", "context parallelism",
    "whole experts (EP) on each GPU", "8 GiB of weights in host memory, one run",
)  # fmt: skip


def lever_table(*names: str) -> pd.DataFrame:
    """Some levers of lesson 08: what each gains and costs, and vLLM's switch."""
    chosen = levers.table([levers.find(name) for name in names])
    chosen["switch"] = [
        f"<code>{switch.split(' {')[0]}</code>" if switch.startswith("-") else switch for switch in chosen["switch"]
    ]
    return chosen[["gain", "cost", "switch"]].rename_axis("lever")


def decisions() -> pd.DataFrame:
    """The measured decision table, as far as a slide has room."""
    return lever_data.decisions().loc[list(SHOWN)].rename_axis("lever")


def budgets() -> pd.DataFrame:
    """What a token budget does to newcomers and writers."""
    found = lever_data.budgets()[["TTFT, s", "ms a token"]].rename_axis("budget")
    return found.rename(columns={"TTFT, s": "newcomer, s", "ms a token": "writers, ms"})


def nap() -> str:
    """A nap of level 1 in a sentence."""
    told = lever_data.sleep().iloc[:, 0]
    return (
        f"asleep a server of the 8B holds {told['asleep, GiB']:.0f} GiB of its GPU instead of {told['awake, GiB']:.0f}, "
        f"and wakes in {told['to wake up, s']} s."
    )


def lever_map() -> pd.DataFrame:
    """The levers by the trouble that each is for."""
    trouble = {
        levers.PREFILL: "the first token comes late", levers.DECODE: "writing is slow",
        levers.BETWEEN: "text comes in jerks", levers.MEMORY: "no room, requests wait", levers.OPERATION: "more than text",
    }  # fmt: skip
    rows = {
        said: {"waits for": kind, "levers": ", ".join(one.name for one in levers.LEVERS if one.fixes == kind)}
        for kind, said in trouble.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("what users say")


def eager_cost() -> str:
    """How many times as fast the defaults are for one request as eager execution with NCCL's all-reduce."""
    return str(lever_data.decisions().loc["CUDA graphs, vLLM's all-reduce", "one request"])
