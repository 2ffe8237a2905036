"""The baseline: answer prompts with Hugging Face transformers, without vLLM, and measure speed and memory.

MODEL=/models/Llama-3.1-8B-Instruct python labs/scripts/baseline_transformers.py [--prompts 4] [--batch 1] [--tokens 128]

SMALL=1 takes the workshop's small Llama, as it does for the servers.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

SMALL_MODEL = Path(__file__).resolve().parents[2] / "helpers" / "tiny" / "model"
GIB = 2**30
QUESTIONS = [
    "What is inference?",
    "Why is a KV cache useful?",
    "What is continuous batching?",
    "What is tensor parallelism?",
]


def main() -> None:
    options = _options()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(
        int(os.environ.get("OMP_NUM_THREADS", "1"))
    )  # of a CPU: the small model gains nothing by more
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto").to(device)
    print(f"{options.model} on {_name_of(device)}: loaded in {time.perf_counter() - began:.1f} s")
    print(f"weights: {model.get_memory_footprint() / GIB:.2f} GiB")

    questions = (QUESTIONS * options.prompts)[: options.prompts]
    answer(model, tokenizer, questions[: options.batch], options.tokens)  # the first one also pays for starting up
    tokens = seconds = 0
    for first in range(0, len(questions), options.batch):
        together = questions[first : first + options.batch]
        took = answer(model, tokenizer, together, options.tokens)
        made = len(together) * options.tokens
        tokens, seconds = tokens + made, seconds + took
        which = f"prompt {first + 1}" if len(together) == 1 else f"prompts {first + 1} to {first + len(together)}"
        print(f"{which}: {made} tokens in {took:.2f} s, {made / took:.1f} tokens/s")
    print(f"all: {tokens} tokens, {tokens / seconds:.1f} tokens/s with {options.batch} at a time; {_memory(device)}")


def answer(model, tokenizer, questions: list[str], tokens: int) -> float:
    """Seconds for exactly `tokens` more tokens of every question, all questions at once, no end before."""
    inputs = tokenizer(questions, return_tensors="pt", padding=True).to(model.device)
    inputs.pop("token_type_ids", None)
    began = time.perf_counter()
    with torch.inference_mode():
        written = model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    written.cpu()  # waits for the GPU
    return time.perf_counter() - began


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} core of a CPU"


def _memory(device: str) -> str:
    if device == "cuda":
        return f"at most {torch.cuda.max_memory_allocated() / GIB:.2f} GiB of GPU memory in use"
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.2f} GiB of main memory in use"


def _options() -> argparse.Namespace:
    small = os.environ.get("SMALL", "0") not in ("", "0")
    model = os.environ.get("MODEL") or (str(SMALL_MODEL) if small else "meta-llama/Llama-3.1-8B-Instruct")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=model, help="a folder or a name on Hugging Face; default: MODEL")
    parser.add_argument("--prompts", type=int, default=4, help="how many in all")
    parser.add_argument("--batch", type=int, default=1, help="how many at a time")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
