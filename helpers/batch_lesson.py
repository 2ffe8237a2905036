"""For lesson 06 and lab 2: the same questions answered with transformers and with vLLM, and how an engine is tuned."""

import io
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.batch_files import CHAT
from helpers.batch_vllm import EngineError
from helpers.tiny import MODEL_DIR, MODEL_NAME

if TYPE_CHECKING:
    import vllm

TOPICS = Path(__file__).parent / "tiny" / "questions.json"
MAX_TOKENS = 300  # more than any answer takes: the model ends by itself


def questions(count: int, *, seed: int = 0) -> list[str]:
    """Questions for the small Llama: two of three about serving, the others to count, whose answers are longer."""
    generator = random.Random(seed)
    topics = [text for topic in json.loads(TOPICS.read_text())["topics"] for text in topic["ask"]]
    asked = [
        f"Count from 1 to {generator.randint(5, 40)}." if i % 3 == 2 else generator.choice(topics) for i in range(count)
    ]
    generator.shuffle(asked)
    return asked


def conversation(question: str) -> list[dict[str, str]]:
    """The messages of a chat that begins with this question."""
    return [{"role": "user", "content": question}]


def as_requests(asked: Sequence[str], **body: Any) -> list[dict[str, Any]]:
    """Lines of the OpenAI batch format; `body` holds fields for all of them, such as max_tokens."""
    return [
        {"custom_id": f"q{i}", "method": "POST", "url": CHAT, "body": {"messages": conversation(question), **body}}
        for i, question in enumerate(asked, 1)
    ]


def write_jsonl(path: Path | str, lines: Sequence[Any]) -> None:
    """Write each of these as a line of JSON, in place of what the file held."""
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass
class Timed:
    """Answers and the `seconds` that all of them took: `tokens` of each answer, its end mark included."""

    name: str
    texts: list[str]
    tokens: list[int]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all answers, a second."""
        return sum(self.tokens) / self.seconds


class Transformers:
    """A model in Hugging Face transformers, without a serving engine."""

    def __init__(self, model: Path | str = MODEL_DIR, *, threads: int | None = None):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as words

        words.set_verbosity_error()  # type: ignore[no-untyped-call]  # has no types
        words.disable_progress_bar()  # type: ignore[no-untyped-call]  # has no types
        if threads:
            torch.set_num_threads(threads)
        self.torch, device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")  # one class of many
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        self.model.to(device)  # type: ignore[arg-type]  # transformers wraps it, and loses what it takes

    def answer(self, asked: Sequence[str], *, at_once: int = 1, max_tokens: int = MAX_TOKENS) -> Timed:
        """Greedy answers, `at_once` in a fixed batch: all of it waits until the longest of its answers is done."""
        name = "transformers, one by one" if at_once == 1 else f"transformers, {at_once} at a time"
        done, began = Timed(name, [], [], 0.0), time.perf_counter()
        for first in range(0, len(asked), at_once):
            for ids in self._generate(asked[first : first + at_once], max_tokens):
                done.tokens.append(len(ids))
                done.texts.append(self.tokenizer.decode(ids, skip_special_tokens=True))
        done.seconds = time.perf_counter() - began
        return done

    def as_text(self, question: str) -> str:
        """The question in the model's chat template."""
        asked = conversation(question)
        text: str = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        return text

    def _generate(self, asked: Sequence[str], max_tokens: int) -> Iterator[list[int]]:
        """The tokens of each answer up to its end mark."""
        texts = [self.as_text(question) for question in asked]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
            self.model.device
        )
        inputs.pop("token_type_ids", None)
        with self.torch.inference_mode():
            written = self.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
        end = self.tokenizer.eos_token_id
        for row in written[:, inputs["input_ids"].shape[1] :].tolist():
            yield row[: row.index(end) + 1] if end in row else row


def prepare() -> None:
    """Before torch or vLLM is imported: few words, no look at the hub, and the engine in this very process.

    So it can be looked into (`limits`). One thread for all that is compared.
    """
    from helpers.keeper import ENVIRONMENT, ONE_RANK

    os.environ.update({**ENVIRONMENT, **ONE_RANK, "VLLM_LOGGING_LEVEL": "ERROR"})


@contextmanager
def quietly() -> Iterator[None]:
    """What libraries print to stderr meanwhile, in Python or below it, goes nowhere; an exception still tells its story."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def answer_with(llm: "vllm.LLM", asked: Sequence[str], *, name: str = "vLLM", max_tokens: int = MAX_TOKENS) -> Timed:
    """Greedy answers, all handed over at once: the engine decides what is in its batch, step by step."""
    return _timed(llm.chat, [conversation(question) for question in asked], name, max_tokens)


def generate_with(llm: "vllm.LLM", prompts: Sequence[str], *, max_tokens: int = MAX_TOKENS) -> Timed:
    """The same with `LLM.generate`, for texts to continue."""
    return _timed(llm.generate, list(prompts), "LLM.generate", max_tokens)


def _timed(call: Callable[..., "list[vllm.RequestOutput]"], prompts: object, name: str, max_tokens: int) -> Timed:
    from vllm import SamplingParams

    began = time.perf_counter()
    outputs = call(prompts, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)
    seconds = time.perf_counter() - began
    answers = [output.outputs[0] for output in outputs]
    return Timed(name, [one.text for one in answers], [len(one.token_ids) for one in answers], seconds)


def useful_share(tokens: Sequence[int], at_once: int) -> float:
    """Of the places in fixed batches, how many make a token that is kept: each batch runs to its longest answer."""
    batches = [tokens[first : first + at_once] for first in range(0, len(tokens), at_once)]
    return sum(tokens) / sum(len(batch) * max(batch) for batch in batches)


@contextmanager
def limits(
    llm: "vllm.LLM", *, max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None
) -> Iterator[None]:
    """Lower what the scheduler of a running engine may put into a step, as the flags of these names do for a new one.

    Takes an engine in this process (`prepare`); both can only be lowered, for what they were at the start has been
    made room for. Raises ValueError for more.
    """
    client: Any = llm.llm_engine.engine_core  # in this process it has the engine itself
    scheduler = client.engine_core.scheduler
    before = scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens
    wanted = (max_num_seqs or before[0], max_num_batched_tokens or before[1])
    if wanted[0] > before[0] or wanted[1] > before[1]:
        raise ValueError(f"This engine was started with max_num_seqs={before[0]}, max_num_batched_tokens={before[1]}.")
    scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens = wanted
    try:
        yield
    finally:
        scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens = before


def sweep(
    llm: "vllm.LLM", asked: Sequence[str], setting: str, values: Sequence[int], *, max_tokens: int
) -> dict[int, Timed]:
    """The same work with several values of `max_num_seqs` or `max_num_batched_tokens`, by value. Raises as `limits`."""
    runs = {}
    for value in values:
        with limits(llm, **{setting: value}):
            runs[value] = answer_with(llm, asked, name=f"{setting}={value}", max_tokens=max_tokens)
    return runs


def run_batch(requests: Path | str, output: Path | str, flags: Sequence[str] = ()) -> None:
    """`vllm run-batch` with the small Llama, in a process of its own, as a terminal would run it.

    Raises EngineError with the end of what it printed when it fails.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", str(requests), "-o", str(output)]
    command += ["--model", str(MODEL_DIR), "--served-model-name", MODEL_NAME, "--enforce-eager", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"vllm run-batch failed. {done.stderr[-500:]}")


def kill_after(process: subprocess.Popen[Any], output: Path | str, answers: int) -> int:
    """kill -9 once so many answers stand in `output`; how many whole lines it has then."""
    output = Path(output)
    while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") >= answers):
        time.sleep(0.02)
    process.kill()
    process.wait()
    return output.read_bytes().count(b"\n")
