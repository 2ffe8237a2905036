"""Exercises of lesson 07: messages, one request, all-reduces, links, copies and cache, experts, a choice, ranks."""

from helpers import parallel_data
from helpers.checks import choice, number
from helpers.hardware import INFINIBAND_NDR, NVLINK4
from helpers.memory import kv_cache_tokens, load, plan
from helpers.parallel_shapes import message_bytes
from helpers.roofline import pp_bytes_per_step, tp_bytes_per_step
from helpers.tiny import MODEL_DIR

SMALL, BIG, HUGE = (load(f"llama-3.1-{size}") for size in ("8b", "70b", "405b-fp8"))
PROMPT = 8192  # tokens of exercise 5

q1 = number(
    tp_bytes_per_step(BIG, tp=4, tokens=1) / pp_bytes_per_step(BIG, pp=4, tokens=1),
    why="160 all-reduces of 1.5 times a hidden state, against 3 hidden states: 240 to 3.",
    tip="Divide `roofline.tp_bytes_per_step(big, tp=4, tokens=1)` by what `pp_bytes_per_step` gives for pp=4.",
    code="answer = roofline.tp_bytes_per_step(big, tp=4, tokens=1) / roofline.pp_bytes_per_step(big, pp=4, tokens=1)",
    misconceptions={
        160: "those are all-reduces; each sends 1.5 hidden states from a GPU, and the pipeline sends 3 in all.",
        160 / 3: "that compares the number of messages, not their bytes: an all-reduce sends 2 (n - 1) / n of one.",
        40: "there are two all-reduces a layer, after attention and after the MLP; and the residual is left out here.",
        1 / 80: "the other way round: TP sends more.",
    },
)

q2 = choice(
    "b",
    why="half of the layers take half of the time, on each of two GPUs, one after the other. In the data: 191 against 201 tokens/s.",
    tip="Follow one token through the picture of the stages: how long does it take until it is through both?",
    misconceptions={
        "a": "each GPU reads half of the weights, but the second begins when the first is done.",
        "c": "twice as long would be if each GPU read all of the weights. A stage has half of them.",
        "d": "the stages need the message, and it is small: 8 kB a token. Look at the bars.",
    },
)

_EACH = parallel_data.tp_costs().loc["70B, TP2 to TP4", "each_us"]
_COUNT = 2 * HUGE.num_hidden_layers
q3 = number(
    _COUNT * _EACH / 1000,
    why="126 layers make 252 all-reduces. The bound of its reading is 21 ms, so the exchange adds about a sixth.",
    tip="How many layers has it (`load('llama-3.1-405b-fp8').num_hidden_layers`), and how many all-reduces has a layer?",
    code="answer = 2 * load('llama-3.1-405b-fp8').num_hidden_layers * costs['each_us'].iloc[-1] / 1000",
    misconceptions={
        _COUNT / 2 * _EACH / 1000: "a layer has two all-reduces: after attention and after the MLP.",
        _COUNT * _EACH: "those are microseconds.",
        160 * _EACH / 1000: "160 is the 70B's: 80 layers. The 405B has 126.",
        _COUNT * parallel_data.tp_costs()["alone_us"].iloc[-1] / 1000: "that is with NCCL's time by itself; inside the server it was less.",
    },
    tolerance=0.05,
)  # fmt: skip

_LATENCY = parallel_data.all_reduces()["NVLink"].iloc[0]
q4 = number(
    _LATENCY * NVLINK4.bytes_per_second / message_bytes(BIG, 1),
    why="10.4 MB pass in the 23 microseconds. A decoding step of 100 requests is all latency; a long prompt is all bandwidth.",
    tip="How many bytes pass in 23 microseconds at 450 GB/s? A token of the 70B is 16,384 bytes of them.",
    code="answer = 23e-6 * 450e9 / 16384",
    misconceptions={
        23e-6
        * 900e9
        / 16384: "twice too many: one way NVLink has 450 GB/s, and a token's 8,192 numbers take 2 bytes each.",
        23e-6 * 450e9: "those are bytes; divide by the 16,384 of a token.",
        23e-6 * 50e9 / 16384: "50 GB/s is InfiniBand's.",
    },
    tolerance=0.03,
)

_SECONDS = 2 * BIG.num_hidden_layers * message_bytes(BIG, PROMPT) / INFINIBAND_NDR.bytes_per_second
q5 = number(
    _SECONDS,
    why="160 x 134 MB = 21 GB at 50 GB/s. At NVLink's 450 it would be 0.05 s. The arithmetic of this prompt on 2 H200 takes 0.6 s at best.",
    tip="160 all-reduces, each of 8,192 x 16,384 bytes, at 50 GB/s. Between two a GPU sends 2 (n - 1) / n = 1 message.",
    code="answer = 160 * 8192 * 16384 / 50e9",
    misconceptions={
        _SECONDS / 8: "400 Gb/s are bits: 50 GB/s.",
        _SECONDS / 9: "that is at NVLink's 450 GB/s.",
        _SECONDS / 2: "a layer has two all-reduces: 160 for 80 layers.",
        _SECONDS / 160: "that is one of 160 all-reduces.",
        _SECONDS / 8192: "that is one token; the prompt has 8,192.",
    },
)  # fmt: skip


def _tokens(tp: int = 1, dp: int = 1) -> int:
    return dp * plan(SMALL, gpu="H200", max_model_len=8192, tp=tp, dp=dp).kv_cache_tokens


_LOST = _tokens(tp=4) - _tokens(dp=4)
q6 = number(
    _LOST,
    why="three more copies of 16.06 GB, at 131,072 bytes a token. A model that is small beside its GPU loses little: a tenth here.",
    tip="With DP4 the weights (16.06 GB) are there four times. How many tokens of 131,072 bytes would fit in the room of the copies too many?",
    code="answer = 3 * 16.06e9 / 131072",
    misconceptions={
        4 * 16.06e9 / 131072: "TP4 needs the weights once, too: three copies are too many.",
        16.06e9 / 131072: "that is the room of one copy; DP4 has three more than TP4.",
        _tokens(dp=4): "those are the tokens that DP4 has; how many has TP4 more?",
        3 * 16.06e9 / 327680: "327,680 bytes are a token's of the 70B.",
    },
)

q7 = number(
    4,
    why="1,536 = 12 x 128: over 8 GPUs an expert's 192 columns are one block and a half. `expert_parallel=True` deals whole experts out instead, and 8 works.",
    tip="Try sizes with `check_layout(mixture, tp=...)`: which is the largest that raises nothing?",
    code="answer = 4",
    misconceptions={
        8: "1,536 / 8 = 192 columns are no whole blocks of 128.",
        12: "12 would leave whole blocks, but 8 KV heads do not divide over 12 GPUs, nor 12 over 8.",
        6: "6 would leave two blocks each, but 8 KV heads do not divide over 6 GPUs.",
        16: "that leaves 96 columns, less than one block.",
    },
)

q8 = choice(
    "b",
    why="TP where links are fast, stages where they are slow: one hidden state a token crosses between the nodes, not 252 all-reduces.",
    tip="Weights of 410 GB: what does each layout leave on a GPU of 80 GB? And what crosses between the nodes for a token?",
    misconceptions={
        "a": "that sends 252 all-reduces a token between the nodes; each waits for the slow link.",
        "c": "two copies of 410 GB do not fit on 8 GPUs of 80 GB.",
        "d": "it fits and sends little, but a single request then reads 410 GB one GPU after another: a quarter of the speed.",
    },
)

TOKENS = kv_cache_tokens(load(MODEL_DIR), 2**30, block_size=128)
q9 = number(
    2 * TOKENS,
    why="each rank keeps the keys and values of half of the heads (TP) or half of the layers (PP): half of a token's bytes, so twice the tokens.",
    tip="One server has 262,144 tokens in 1 GiB, 4,096 bytes each. What does a token take on each of two ranks, if both have 1 GiB?",
    code="answer = 2 * 262144",
    misconceptions={
        TOKENS: "so it would be if each rank kept all of a token; that is DP.",
        TOKENS / 2: "each rank has 1 GiB of its own, and half of the bytes of a token.",
        4 * TOKENS: "twice the memory in all; a token still takes 4,096 bytes in all.",
    },
)
