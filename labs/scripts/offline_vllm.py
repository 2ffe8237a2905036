"""vLLM without a server: load a model once, answer prompts of chosen numbers and lengths, a row of the table for each.

MODEL=/models/Llama-3.1-8B-Instruct python labs/scripts/offline_vllm.py [--prompts 1 16 64] [--input 128] [--output 128]
    [--temperature 0] [--tp 1] [flags of vLLM, such as --max-num-seqs 64]

Prompts are random tokens and answers have no end before --output tokens: figures compare settings, not texts.
SMALL=1 takes the workshop's small Llama, as it does for the servers.
"""

import argparse
import itertools
import os
import random
import time
from pathlib import Path

from helpers.keeper import a_core_each
from helpers.tiny import MODEL_DIR

HEADINGS = ("prompts", "tokens in", "out", "temperature", "seconds", "tokens/s out", "in and out")


def main() -> None:
    options, flags = _options()
    _prepare(options)
    from vllm import SamplingParams, TokensPrompt

    from helpers.batch_vllm import InProcess

    began = time.perf_counter()
    engine = InProcess.start(
        options.model, ["--tensor-parallel-size", str(options.tp), "--no-enable-prefix-caching", *flags]
    )
    print(f"{engine.model}, TP{options.tp}: loaded in {time.perf_counter() - began:.0f} s", flush=True)
    llm = engine.llm
    vocabulary = llm.model_config.get_vocab_size()

    def answer(prompts: int, tokens_in: int, tokens_out: int, temperature: float) -> float:
        """Seconds for so many prompts of so many tokens, all handed over at once."""
        draw = random.Random(0)
        asked = [
            TokensPrompt(prompt_token_ids=draw.choices(range(vocabulary // 10, vocabulary * 9 // 10), k=tokens_in))
            for _ in range(prompts)
        ]
        parameters = SamplingParams(temperature=temperature, max_tokens=tokens_out, ignore_eos=True)
        began = time.perf_counter()
        llm.generate(asked, parameters, use_tqdm=False)
        return time.perf_counter() - began

    answer(1, 16, 16, 0)  # the first one also pays for starting up
    print(" ".join(f"{heading:>12}" for heading in HEADINGS))
    for row in itertools.product(options.prompts, options.input, options.output, options.temperature):
        seconds, (prompts, tokens_in, tokens_out, temperature) = answer(*row), row
        made, read = prompts * tokens_out, prompts * tokens_in
        figures = (f"{seconds:.2f}", f"{made / seconds:,.0f}", f"{(made + read) / seconds:,.0f}")
        cells = (prompts, tokens_in, tokens_out, f"{temperature:g}", *figures)
        print(" ".join(f"{cell:>12}" for cell in cells), flush=True)


def _prepare(options: argparse.Namespace) -> None:
    """Before vLLM is imported: few words, and on a CPU a core for each rank."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if options.tp > 1 and Path(options.model).resolve() == MODEL_DIR:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", a_core_each(options.tp))


def _options() -> tuple[argparse.Namespace, list[str]]:
    small = os.environ.get("SMALL", "0") not in ("", "0")
    model = os.environ.get("MODEL") or (str(MODEL_DIR) if small else "meta-llama/Llama-3.1-8B-Instruct")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default=model, help="a folder or a name on Hugging Face; default: MODEL")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16, 64], help="how many are handed over at once")
    parser.add_argument("--input", type=int, nargs="+", default=[128], help="tokens of each prompt")
    parser.add_argument("--output", type=int, nargs="+", default=[128], help="tokens of each answer")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0])
    parser.add_argument("--tp", type=int, default=1, help="GPUs that share the model")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
