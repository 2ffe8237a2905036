"""Exercises of lesson 09: name the cause from a log, compute the mend, and repair deployments that fail."""

from typing import Any

from helpers import broken
from helpers.checks import Exercise, Verdict, choice, number, right, wrong
from helpers.layout import LayoutError, check_layout
from helpers.memory import fewest_gpus, load
from helpers.tiny import MODEL_DIR


def _judge_layout(answer: Any) -> Verdict:
    tp, pp = answer["tp"], answer["pp"]
    try:
        check_layout(load("qwen2.5-32b"), tp=tp, pp=pp)
    except LayoutError as error:
        return wrong(f"vLLM refuses this one too. {error}")
    if tp * pp != 16:
        return wrong(f"TP{tp} x PP{pp} takes {tp * pp} GPUs, and the job has 16.")
    across = " It works; TP4 x PP4 keeps each TP group inside a node, which is faster." if tp > 4 else ""
    return right(f"{tp} divides the 40 heads and the 8 KV heads, and TP{tp} x PP{pp} are 16 GPUs.{across}")


q1 = Exercise(
    _judge_layout,
    tip="TP must divide 40 heads and go with 8 KV heads; PP makes up the rest: tp * pp must be 16.",
    code="answer = dict(tp=4, pp=4)",
    wrong_answers=[{"tp": 16, "pp": 1}, {"tp": 10, "pp": 1}, {"tp": 4, "pp": 1}, {"tp": 2, "pp": 4}, 8],
)

q2 = number(
    broken.recorded("damaged").diagnosis.line,
    why="the worker could not read the file with the weights: it ends before the place that its header names. All errors below are processes that waited for the worker.",
    tip="`damaged.errors()` lists the lines that name an error. Which one does not point to another one?",
    code="answer = 104",
    misconceptions={
        223: "that is where reading from the bottom begins: it says that the cause stands above.",
        132: "the engine only reports that its worker has failed: see the stack trace for the root cause, it says.",
        164: "the same sentence again, printed a second time when the engine's process ended.",
        44: "that is the heading, `WorkerProc failed to start`. The last line of a traceback names the error.",
    },
    tolerance=0,
)


def _length(flags: Any) -> int:
    """What --max-model-len is set to; the broken deployment had 2048."""
    words = [word for flag in flags for word in str(flag).split("=")]
    return int(words[words.index("--max-model-len") + 1]) if "--max-model-len" in words else 2048


def _judge_small_cache(answer: Any) -> Verdict:
    if isinstance(answer, str):
        return wrong('give the flags as a list of strings: ["--max-model-len", "1000"].')
    if any("num-gpu-blocks" in str(flag) for flag in answer):
        return wrong("the check gives it the four blocks itself; mend it without more of them.")
    if (length := _length(answer)) >= 2048:
        return wrong("that still asks for 2,048 tokens, which the four blocks do not hold.")
    tried = broken.attempt("--num-gpu-blocks-override", "4", *map(str, answer))
    if not tried.answers:
        return wrong(f"it was started, and did not come up. {tried.sentence}")
    if length < 256:
        return wrong(f"it answers, with {length} tokens for prompt and answer; more of them fit.")
    return right(f"it was started with these flags and answers. A request may have {length} tokens.")


q3 = Exercise(
    _judge_small_cache,
    tip="The line that names the cause also names the length that fits.",
    code='answer = ["--max-model-len", "384"]',
    wrong_answers=[["--max-model-len", "512"], [], ["--max-model-len", "4096"], "--max-model-len 384", 384],
)

q4 = number(
    10_240,
    why="3.13 GiB / 327,680 bytes are 10,256 tokens, which is 641 blocks of 16; one request gets the whole blocks below that, 10,240. It is the length vLLM estimates.",
    tip="The line says that 32,768 tokens need 10.0 GiB. What does one token need? And how many such fit in 3.13 GiB?",
    code="answer = 3.13 * 2**30 / (2 * 80 * 8 * 128 * 2)",
    misconceptions={
        3_130: "10 GiB are for 32,768 tokens, not for 10,000.",
        104_690: "that is ten times too many: divide 3.13 by 10.0 first.",
        32_768: "that is what was asked for; it does not fit.",
        22_500: "that is what is lacking: 32,768 less what fits.",
    },
    tolerance=0.01,
)

_FEWEST = fewest_gpus(load("llama-3.1-70b"), "H200", max_model_len=32_768)

q5 = number(
    _FEWEST.gpus,
    why=f"{_FEWEST.layout}: {_FEWEST.reason} Twice the GPUs, and from no room at all to plenty, because the weights are paid for only once.",
    tip="The log: 131.45 GiB of weights on one GPU, and -5.26 GiB left for the cache. What do two GPUs have, each with half the weights?",
    code="""from helpers.memory import fewest_gpus, load

answer = fewest_gpus(load("llama-3.1-70b"), "H200", max_model_len=32768).gpus""",
    misconceptions={
        1: "that is the deployment that failed: 5.26 GiB are lacking before the first token of cache.",
        3: "TP3 does not divide 64 heads; besides, fewer do.",
        4: "four do as well, and two are free for others with two.",
        8: "eight H100s would be for FP16 of a model five times as large.",
    },
    tolerance=0,
)

q6 = choice(
    "c",
    why="nothing is at that path on this machine, so vLLM takes it for a name on Hugging Face, and a name has at most one slash. The message complains about the form of the name; the cause is a folder that is not there.",
    tip="Which kinds of text does vLLM take for a model? What does it try when there is no such folder?",
    misconceptions={
        "a": "no site was asked: the check of the name comes before any connection.",
        "b": "`repo_type` tells data sets from models; the sentence is Hugging Face's, who cannot know that you meant a folder.",
        "d": "a gated model is refused with 401 or 403, and only after its name has been accepted.",
    },
)

q7 = choice(
    "d",
    why="a process that gets signal 9 cannot write a word. Who killed it has: the kernel in `dmesg`, or Slurm, whose log then says `oom_kill`. vLLM's log only tells when it happened.",
    tip="Look at the lines: does any of them say what happened to the engine?",
    misconceptions={
        "a": "EngineDeadError says that the engine is gone. Not why.",
        "b": "the API server noticed that the engine is gone, and has no idea why.",
        "c": "the answers before were fine, and the log shows no error until the end.",
    },
)

q8 = choice(
    "b",
    why="rank 1 is the first to log an error: its worker died with exit code -9, which is signal 9. Rank 0 was cancelled afterwards, and its `EngineDeadError` is an echo. Who sent the signal stands in neither log: look for the memory of that node.",
    tip="Which rank logged an error first? `broken_plots.clock(dead)` shows both logs on one clock.",
    misconceptions={
        "a": "`EngineDeadError` says that an engine is gone, not why; and rank 1 had logged an error nine seconds before.",
        "c": "no line of either rank complains about a connection; they had served together until then.",
        "d": "the launcher ended it: `rank 1 on node2 ended ... while serving` comes before anything was cancelled.",
    },
)

q9 = choice(
    "c",
    why="Slurm's log says CANCELLED ... DUE TO TIME LIMIT; a job that is cancelled by hand has the same line without a reason. Only Slurm knows its limits, so look at what Slurm writes.",
    tip="Look for CANCELLED in `expired['slurm.log']`: what is the reason?",
    misconceptions={
        "a": "then Slurm's log would speak of `oom_kill`, and the status would be 137.",
        "b": "that is the other of the launcher's two guesses; Slurm's own line names the reason.",
        "d": "vLLM shut down in good order, as it does when it is told to: no error stands before that.",
    },
)

q10 = choice(
    "c",
    why="all lines `via NET/Socket` say that NCCL moves the data between these GPUs over TCP. The server answers all the same: slow is not an error, so no line complains.",
    tip="Compare `grep('via ')` of the two logs.",
    misconceptions={
        "a": "both have the same flags and the same shape of model; only the way between the GPUs differs.",
        "b": "both logs have an equally large cache; look for `KV cache size`.",
        "d": "nothing failed here: no traceback, and it answered every request.",
    },
)


def _judge_repair(answer: Any) -> Verdict:
    model, flags = answer["model"], [str(flag) for flag in answer["flags"]]
    if not any("max-num-seqs" in flag for flag in flags):
        return wrong("`--max-num-seqs 8` did no harm: keep what works, or you will not know what mended it.")
    tried = broken.attempt(*flags, model=model)
    if tried.answers:
        return right("it was started with this and answers. Four faults, one mend at a time, each named by its log.")
    return wrong(f"it was started, and did not come up. {tried.sentence}")


q11 = Exercise(
    _judge_repair,
    tip="Mend what the sentence names, and start again: the next fault shows only then. The small Llama lies in `broken.MODEL_DIR`.",
    code="""answer = dict(
    model=broken.MODEL_DIR,
    flags=["--max-num-seqs", "8", "--max-model-len", "2048"],
)""",
    wrong_answers=[
        {"model": "/models/tiny-llama", "flags": ["--max-num-seqs", "8"]},
        {"model": MODEL_DIR, "flags": ["--max-num-seqs", "8", "--tensor-parallel-size", "3"]},
        {"model": MODEL_DIR, "flags": []},
        "restart it",
    ],
)
