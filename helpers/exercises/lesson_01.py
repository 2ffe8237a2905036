"""Exercises of lesson 01: weights, KV cache, layouts, speed, and a server's own figure."""

from typing import Any

from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.hardware import GIB
from helpers.memory import LayoutError, load, plan

q1 = number(
    810,
    why="405 billion x 2 bytes = 810 GB. Ten times the 80 of an H100 label, before a single token is cached.",
    tip="FP16 has 16 bits. How many bytes are that, and for how many parameters?",
    code="answer = 405 * 2",
    misconceptions={
        405: "that is one byte a parameter, as in FP8; 16 bits are two bytes.",
        1620: "that is four bytes a parameter, as in FP32; FP16 has 16 bits.",
        6480: "405 x 16 counts bits; memory is counted in bytes of 8 bits.",
        754.4: "that is GiB; the question is for GB, of 10^9 bytes.",
    },
)

q2 = number(
    141.107e9 / GIB,
    why="141.1 x 10^9 / 2^30 = 131.4 GiB: the same bytes, a larger unit, a smaller number.",
    tip="Turn GB into bytes (10^9 each), then bytes into GiB (2^30 each).",
    code="answer = 141.1e9 / 2**30",
    misconceptions={
        141.1: "that is still in GB; a GiB is about 7% larger than a GB, so there are fewer of them.",
        151.5: "you multiplied by 1.074; a larger unit gives a smaller number, so divide.",
        137.8: "you divided by 1.024 once; from 10^9 to 2^30 it is three times, 1.024^3 = 1.074.",
    },
    tolerance=0.005,
)

q3 = choice(
    "b",
    why="the embedding and the output head keep 2 bytes a number; with 128,256 x 4,096 numbers each they are 2.1 GB, and 0.5 GB would be 4 bits.",
    tip="Only linear layers inside the decoder layers are quantised. What large matrices does that leave out?",
    misconceptions={
        "a": "there is one 2-byte scale for each 128 weights: that adds 3%, not 40%.",
        "c": "the KV cache is made when requests come; a checkpoint holds none of it.",
        "d": "the files pack two weights into a byte, so 4 bits are 4 bits.",
    },
)

q4 = number(
    327_680,
    why="2 x 80 layers x 8 KV heads x 128 x 2 bytes = 327,680 bytes, 320 KiB for every token.",
    tip="2 (K and V) x layers x KV heads x head_dim x bytes a number; take them from the table of shapes.",
    code="answer = 2 * 80 * 8 * 128 * 2",
    misconceptions={
        2_621_440: "you took the 64 attention heads; only the 8 KV heads are cached, and eight query heads share each.",
        163_840: "half of it is missing: a key and a value for each head, and two bytes for each number.",
        4_096: "that is one layer; every layer has a cache of its own.",
        655_360: "you took four bytes a number; BF16 and FP16 have two.",
    },
    tolerance=0,
)

q5 = number(
    16,
    why="123.05 is twice 61.52, and the formula is linear in the KV heads: 16 in place of the 8 that config.json names.",
    tip="The published figure is twice ours. Which of the factors can have been doubled?",
    code="answer = 2 * 8",
    misconceptions={
        8: "8 is what config.json says, and gives 61.52 GiB.",
        128: "128 are the attention heads; caching all of them would give 984 GiB.",
        4: "fewer heads make a smaller cache; the published figure is larger.",
    },
    tolerance=0,
)


def _judge_sizes(answer: Any) -> Verdict:
    sizes = {int(size) for size in answer}
    if sizes == {1, 2, 4}:
        return right(
            "1, 2 and 4 divide the 28 heads and the 4 KV heads. On a node of 8 GPUs, the rest is for PP or DP."
        )
    if 8 in sizes:
        return wrong("8 GPUs in a node does not help: 28 heads cannot be dealt out evenly to 8.")
    if 7 in sizes:
        return wrong("7 divides the 28 heads, but 4 KV heads on 7 GPUs come out even in neither direction.")
    if 14 in sizes or 28 in sizes:
        return wrong("only sizes up to 8 were asked for; besides, check the KV heads too.")
    if sizes & {3, 5, 6}:
        return wrong("28 heads divided by 3, 5 or 6 leave a rest; every GPU must get the same number.")
    return wrong("one is missing, or there is one too many: try each size from 1 to 8.")


q6 = Exercise(
    _judge_sizes,
    tip="Each size must divide the 28 heads. And the 4 KV heads must divide it, or it must divide them.",
    code="answer = [1, 2, 4]",
    wrong_answers=[[1, 2, 4, 7], [1, 2, 4, 8], [1, 2, 3, 4], [2, 4], [1, 2, 4, 7, 14, 28], 4],
)

q7 = choice(
    "b",
    why="a GPU cannot hold less than one KV head. From TP8 on each holds exactly one, and at TP16 every head is kept twice.",
    tip="Look at the column with the KV heads on a GPU. How far down can it go?",
    misconceptions={
        "a": "layers matter to PP, which deals out whole layers; TP cuts inside every layer.",
        "c": "the weights per GPU do halve; that leaves more room for the cache but makes no token smaller.",
        "d": "a node's border costs time, not memory: nothing is copied because of it.",
    },
)

_TWO, _FOUR = (plan(load("llama-3.1-70b"), gpu="H100", tp=tp).kv_cache_tokens for tp in (2, 4))

q8 = number(
    _TWO - 16,
    why=f"about {_TWO:,} tokens. Half the GPUs leave {_TWO / _FOUR:.0%} of the cache, because the weights stay as large as they were.",
    tip="`plan(load('llama-3.1-70b'), gpu='H100', tp=2).reason` says which length fits.",
    code="""two = plan(load("llama-3.1-70b"), gpu="H100", tp=2)
answer = two.kv_cache_tokens - 16""",
    misconceptions={
        131_072: "that is what the model was trained for; the cache on two GPUs has no room for it.",
        _FOUR: "that is the cache of four GPUs; two of them have half the memory and the same weights.",
        _TWO // 2: "no need to halve: each token is spread over both GPUs, and `kv_cache_tokens` counts whole tokens.",
        _FOUR // 2: "half the GPUs leave far less than half the cache: the weights do not shrink with them.",
    },
)


def _judge_layout(answer: Any) -> Verdict:
    tp, pp = answer["tp"], answer.get("pp", 1)
    try:
        planned = plan(load("llama-3.1-405b-fp8"), gpu="H100", tp=tp, pp=pp, max_model_len=131_072)
    except LayoutError as error:
        return wrong(f"vLLM refuses this layout. {error}")
    if not planned.fits:
        return wrong(f"{planned.layout} takes {planned.gpus} GPUs, and it does not fit. {planned.reason}")
    if planned.gpus % 4:
        return wrong(f"it fits, but {planned.gpus} GPUs are not whole nodes of 4.")
    if planned.gpus > 8:
        return wrong(f"it fits on {planned.gpus} GPUs; half the precision should need about half the GPUs of BF16.")
    return right(f"{planned.layout}, two nodes. {planned.reason} BF16 took three nodes, with less room.")


q9 = Exercise(
    _judge_layout,
    tip="FP8 weights are about 410 GB. How many nodes of 4 x 80 GB does that take, with something left for the cache?",
    code="answer = dict(tp=8, pp=1)",
    wrong_answers=[
        {"tp": 4, "pp": 1},
        {"tp": 16, "pp": 1},
        {"tp": 6, "pp": 1},
        {"tp": 1, "pp": 7},
        {"tp": 4, "pp": 4},
        8,
    ],
)

q10 = number(
    4 * 4.8e12 / 141.1e9,
    why="four GPUs read 4 x 4.8 TB a second, and each token takes 141.1 GB: at most 136 tokens a second.",
    tip="For each token all weights are read once, a quarter by each GPU, all four at the same time.",
    code="answer = 4 * 4.8e12 / 141.1e9",
    misconceptions={
        34.0: "that is one GPU reading all the weights; under TP4 four GPUs read a quarter each, at the same time.",
        544.2: "you used the four GPUs twice: either each reads a quarter, or together they are four times as fast.",
        298.9: "that is the 8B model on one GPU; 70B has 141.1 GB of weights.",
        0.00735: "that is the time for a token, in seconds; tokens per second are its inverse.",
    },
)

q11 = number(
    262_144,
    why="2 x 8 layers x 4 KV heads x 32 x 2 bytes = 4,096 bytes a token, and 2^30 / 4,096 = 262,144 tokens.",
    tip="2 x layers x KV heads x head_dim x 2 bytes for a token. Then: how many of those are in 2^30 bytes?",
    code="answer = 2**30 // (2 * 8 * 4 * 32 * 2)",
    misconceptions={
        244_140: "you took 10^9 bytes, a GB; a GiB has 2^30.",
        244_140.625: "you took 10^9 bytes, a GB; a GiB has 2^30.",
        524_288: "a token takes twice what you counted: a key and a value, and two bytes for each number.",
        131_072: "only the 4 KV heads are cached, not the 8 attention heads.",
        4_096: "that is how many bytes a token takes. How many such tokens fit into 2^30 bytes?",
        2_048: "that is the number of blocks of 128 tokens; the question is for tokens.",
        128: "that is how many requests of 2,048 tokens fit; the question is for tokens.",
    },
    tolerance=0,
)  # fmt: skip
