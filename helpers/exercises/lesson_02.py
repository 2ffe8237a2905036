"""Exercises of lesson 02: the cached attention step, what the cache costs, pages, the order of finishing, prefix hits."""

from typing import Any

import numpy as np

from helpers import attention, real_engine
from helpers.attention_work import cache_bound_length
from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.kv_cache import kv_bytes_per_token
from helpers.models import load
from helpers.scheduler import Request, simulate

#: The settings of the two real servers, as the simulator takes them.
CACHE: dict[str, Any] = {"blocks": 33, "block_size": real_engine.BLOCK_SIZE, "prefix_caching": True}
#: Eight requests for them: prompt tokens, tokens to write.
LENGTHS = {
    "a": (10, 350), "b": (135, 430), "c": (50, 70), "d": (60, 160),
    "e": (265, 590), "f": (170, 30), "g": (140, 510), "h": (200, 115),
}  # fmt: skip


def _judge_step(answer: Any) -> Verdict:
    """Feed a prompt at once and then token by token; all tokens at once, without a cache, are the truth."""
    weights = attention.Weights.random(hidden=24, heads=4, kv_heads=2, seed=3)
    x = np.random.default_rng(4).standard_normal((7, 24))
    truth, cache, work = attention.step(x, weights), attention.KVCache(7, weights), attention.Work()
    parts = [np.asarray(answer(piece, weights, cache, work)) for piece in (x[:4], x[4:5], x[5:6], x[6:])]
    if parts[0].shape != (4, 24):
        return wrong(f"for 4 tokens it returns an array {parts[0].shape}; the four must come back as (4, 24).")
    if cache.length != 7:
        return wrong(f"after 7 tokens the cache holds {cache.length}: append the new keys and values, once.")
    if not np.allclose(parts[0], truth[:4], atol=1e-6):
        return wrong("the prompt's outputs already differ: is the output matrix applied to the heads side by side?")
    if not np.allclose(np.vstack(parts), truth, atol=1e-6):
        return wrong(
            "the prompt is right and the next token is not: it must look at all keys and values, not only its own."
        )
    return right(
        "the same outputs to 1e-6. The new token is compared with what the cache holds, and nothing is computed twice."
    )


q1 = Exercise(
    _judge_step,
    tip="Append the new keys and values first; then let the queries attend to `cache.keys` and `cache.values`.",
    code="""def answer(x, weights, cache, work):
    queries, keys, values = attention.project(x, weights, work)
    cache.append(keys, values)
    attended = attention.attend(queries, cache.keys, cache.values, work)
    return attended.reshape(len(x), -1) @ weights.output""",
    wrong_answers=[
        lambda x, weights, cache, work: attention.step(x, weights),
        lambda x, weights, cache, work: (cache.append(*attention.project(x, weights, work)[1:]), attention.step(x, weights))[1],
        lambda x, weights, cache, work: attention.step(x, weights, cache)[-1],
        42,
    ],
)  # fmt: skip

q2 = choice(
    "b",
    why="a step costs as much as there are tokens before it with the cache, and the square of that without; summed over the "
    "answer, each gains one power.",
    tip="Read the two slopes off the picture for one token; then add up the tokens of an answer.",
    misconceptions={
        "a": "that is the cost of one token. An answer is the sum over its tokens: 1 + 2 + ... + n grows like n².",
        "c": "the cache saves the second computing of old tokens, not the look at each of them: it still grows.",
        "d": "with the cache every token still looks at all before it, so an answer is more than n.",
    },
)

_LLAMA = load("llama-3.1-8b")
_BATCH = 32


def _bound(batch: int) -> int:
    length = cache_bound_length(_LLAMA, "H100", batch=batch)
    assert length is not None  # this model has no sliding window
    return length


_ALONE, _BOUND = _bound(1), _bound(_BATCH)

q3 = number(
    _BOUND,
    why=f"16.06 GB / ({_BATCH} x {kv_bytes_per_token(_LLAMA):,} bytes) = about {_BOUND:,} tokens each. Long chats on a busy server are "
    "about the cache, not about the weights.",
    tip="In one step the GPU reads the weights once, and the cache of every request. When are the two equally large?",
    code=f"answer = 16.06e9 / ({_BATCH} * 131_072)",
    misconceptions={
        _ALONE: "that holds for one request. All 32 caches are read in a step, the weights only once.",
        _ALONE * _BATCH: "more requests make the cache larger, so the length falls: divide by 32.",
        131_072: "131,072 are the bytes of one token's keys and values; how many such tokens weigh as much as the weights?",
    },
    tolerance=0.03,
)  # fmt: skip

_TOKENS = (300, 120, 900, 80)

q4 = number(
    1 - sum(_TOKENS) / (4 * 2048),
    why="1,400 of 8,192 reserved tokens are used: 83% of the memory waits for tokens that never come.",
    tip="Reserved are 4 x 2,048 tokens. How many of them are used in the end?",
    code="answer = 1 - (300 + 120 + 900 + 80) / (4 * 2048)",
    misconceptions={
        sum(_TOKENS) / (4 * 2048): "that is the share in use; asked for is what is wasted.",
        100 * (1 - sum(_TOKENS) / (4 * 2048)): "that is in percent; give it as a share, between 0 and 1.",
        4 * 2048 - sum(_TOKENS): "that is in tokens; give it as a share of what is reserved, between 0 and 1.",
    },
)


def _page_waste(size: int) -> float:
    held = sum(-(-tokens // size) for tokens in _TOKENS) * size
    return 1 - sum(_TOKENS) / held


def _judge_page(answer: Any) -> Verdict:
    if answer not in (16, 32, 64, 128, 256, 512):
        return wrong("choose one of 16, 32, 64, 128, 256 and 512 tokens.")
    waste = f"pages of {answer} tokens waste {_page_waste(answer):.1%} of what the four hold"
    if _page_waste(answer) >= 0.1:
        return wrong(f"{waste}, which is not below 10%.")
    if _page_waste(2 * answer) < 0.1:
        return wrong(f"{waste}. A larger page also stays below 10%, and makes the table of pages shorter.")
    return right(f"{waste}, and the next size {_page_waste(2 * answer):.1%}. On average half a page a request is lost.")


q5 = Exercise(
    _judge_page,
    tip="For each request round its tokens up to whole pages, add up, and compare with the 1,400 tokens.",
    code="answer = 64",
    wrong_answers=[16, 32, 128, 256, 512, 100],
)

#: Two seats, and four requests: prompt tokens, tokens to write.
QUEUE = {"a": (20, 9), "b": (20, 3), "c": (20, 4), "d": (20, 1)}
_QUEUE = [Request(name, *lengths) for name, lengths in QUEUE.items()]


def _judge_order(answer: Any) -> Verdict:
    names = list(answer)
    if sorted(names) != sorted(QUEUE):
        return wrong("name each of a, b, c and d once, the first to finish first: a word such as 'abcd' will do.")
    if names == simulate(_QUEUE, blocks=40, max_num_seqs=2).finish_order:
        return right(
            "c takes b's seat as soon as b is done, and d takes c's. a came first and is done last: it is the longest."
        )
    if names == simulate(_QUEUE, blocks=40, max_num_seqs=2, policy="static").finish_order:
        return wrong("that is the static batch: there c and d wait until a is done as well.")
    if names[0] == "d":
        return wrong(
            "d is the shortest, but it stands last in the queue and there are two seats: first come, first served."
        )
    return wrong("play it step by step: a and b sit down first. Who is done first, and who takes the free seat?")


q6 = Exercise(
    _judge_order,
    tip="Note for each step who sits in the two seats. A request leaves in the step in which it writes its last token.",
    code=f"answer = {''.join(simulate(_QUEUE, blocks=40, max_num_seqs=2).finish_order)!r}",
    wrong_answers=[
        "abcd",
        "dbca",
        "abdc",
        "ab",
        simulate(_QUEUE, blocks=40, max_num_seqs=2, policy="static").finish_order,
    ],
)

q7 = choice(
    "c",
    why="the one that came last goes back to the head of the queue, and computes its tokens again when there is room: recompute "
    "costs a prefill, which is cheaper than it sounds.",
    tip="Look for the × in the picture: whose line is it on, and when was that one admitted?",
    misconceptions={
        "a": "the one admitted first is the closest to its end; ending others for it keeps the order of the queue.",
        "b": "vLLM does not look at lengths: it cannot know how long an answer will be.",
        "d": "nothing fails. The request is put back, and what it has written so far is kept as text.",
    },
)

SHARED, QUESTION, QUESTIONS = 300, 20, 8

q8 = number(
    (QUESTIONS - 1) * (SHARED // real_engine.BLOCK_SIZE) * real_engine.BLOCK_SIZE,
    why="two full blocks of 128 tokens, found by each of the seven that come after the first: 7 x 256 = 1,792.",
    tip="Only full blocks can be found. How many full blocks of 128 have the 300 shared tokens, and who finds them?",
    code="answer = 7 * 2 * 128",
    misconceptions={
        (QUESTIONS - 1) * SHARED: "44 of the 300 tokens lie in a third block, which also holds the question and so is different each time.",
        QUESTIONS * 2 * real_engine.BLOCK_SIZE: "the first one finds nothing: somebody has to compute the tokens once.",
        QUESTIONS * SHARED: "the first one finds nothing, and only full blocks are found.",
    },
    tolerance=0.001,
)  # fmt: skip

_WORKLOAD = real_engine.workload(LENGTHS)
_PEAK = simulate(_WORKLOAD, max_num_seqs=16, **CACHE).peak_reported
_ALL = sum(-(-(prompt + output - 1) // real_engine.BLOCK_SIZE) for prompt, output in LENGTHS.values())

q9 = number(
    _PEAK,
    why=f"{_PEAK} blocks of the 32. The server's own gauge will tell in a moment.",
    tip="`simulate(requests, max_num_seqs=16, **check.CACHE)` returns a trace; `.peak_reported` is what an engine's gauge shows.",
    code="answer = simulate(requests, max_num_seqs=16, **check.CACHE).peak_reported",
    misconceptions={
        _ALL: f"{_ALL} is the sum of what each needs at its end; but short ones are done, and have given theirs back, before long ones are full.",
        sum(-(-prompt // real_engine.BLOCK_SIZE) for prompt, _ in LENGTHS.values()): "these are the prompts' blocks; the answers need blocks too.",
        32: "the cache has 32; with these requests it never gets full.",
    },
    tolerance=0.001,
)  # fmt: skip
