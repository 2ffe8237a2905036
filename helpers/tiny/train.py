"""Train the small Llama:  python -m helpers.tiny.train [--out FOLDER] [--epochs N] [--draft]

One command, one seed. A data-centre GPU needs minutes; a CPU does about 3,000 tokens/s and needs many hours, which the
command says before it begins. It writes what a vLLM server reads (config.json, tokenizer, model.safetensors in
bfloat16) and the loss curve as data and as a picture.

The model: 8 layers, hidden size 256, 8 query heads and 4 KV heads of 32, so that TP 1, 2 and 4 and PP up to 8 are legal
and one token takes 2 x 8 layers x 4 KV heads x 32 x 2 bytes = 4096 bytes of KV cache.

--draft trains its small sibling instead, an eighth of its size, which guesses for it in lesson 08b: 2 layers of 128 with
the same heads and vocabulary. Three epochs make it good enough, and take some ten minutes on two cores.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.tiny import DRAFT_DIR, MODEL_DIR, corpus
from helpers.tiny.world import ASSISTANT, END, SYSTEM, USER

BEGIN, PAD = "<s>", "<|pad|>"
SPECIAL = [BEGIN, END, PAD, SYSTEM, USER, ASSISTANT]
VOCABULARY, CONTEXT = 4096, 2048
DRAFT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTHS = [16, 32, 64, 128, 256, 512, 1024, CONTEXT]  # documents are padded to the next of these
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the corpus; every digit is a token of its own, so that sums can be learned."""
    tokenizer = Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    whole_words = [f" {word}" for odds in corpus.ODDS.values() for word in odds] * 100  # so that each is one token
    tokenizer.train_from_iterator(texts + whole_words, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own, without types
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast, **sizes: int) -> LlamaForCausalLM:
    """The small Llama with fresh weights; `sizes` replace those of its config."""
    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **shape | sizes,
    )  # fmt: skip
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each document, begin token first, end token last, cut to the context."""
    encoded = tokenizer.backend_tokenizer.encode_batch([text.removesuffix(END) + END for text in texts])
    return [e.ids[:CONTEXT] for e in encoded]


def batches(documents: list[list[int]], tokens: int, pad: int, rng: random.Random) -> Iterator[torch.Tensor]:
    """One epoch of [rows, length] batches of about `tokens` tokens; a row is one document, so none sees another."""
    buckets: dict[int, list[list[int]]] = {length: [] for length in LENGTHS}
    for ids in documents:
        length = next(n for n in LENGTHS if n >= len(ids))
        buckets[length].append(ids + [pad] * (length - len(ids)))
    made = []
    for length, rows in buckets.items():
        size = max(1, tokens // length)
        made += [rows[i : i + size] for i in range(0, len(rows), size)]
    rng.shuffle(made)
    for rows in made:
        yield torch.tensor(rows)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy per predicted token (nats), and the z-loss, of (rows, length) token ids filled up with `pad`.

    The z-loss pulls log(sum(exp(logits))) to 0, so that a likely token's logit is its log probability: a small number,
    which bfloat16 holds precisely. Without it the served odds would be rounded by several percent.
    """
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    labels = ids[:, 1:]
    keep = labels != pad
    log_z = logits.logsumexp(-1)
    cross_entropy = (log_z - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1))[keep].mean()
    return cross_entropy, (log_z[keep] ** 2).mean()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step of so many: a straight line up to the peak, then a cosine down to 0."""
    warm_up = min(200, max(1, steps // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(
    epochs: int, tokens_per_step: int, device: str, seed: int = 0, stop_after: int | None = None, **sizes: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The trained model, its tokenizer, and the loss (nats per token) of each step.

    Same seed, same hardware: same losses to two decimals. `stop_after` so many steps; `sizes`: see make_model.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what makes cuBLAS repeat itself
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass is not deterministic; the flash kernel's is
    torch.set_float32_matmul_precision("high")
    first = corpus.documents(seed)
    tokenizer = make_tokenizer(first)
    model = make_model(tokenizer, **sizes)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it and loses its types
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )

    documents = tokenize(tokenizer, first)
    steps_per_epoch = sum(1 for _ in batches(documents, tokens_per_step, tokenizer.pad_token_id, random.Random(seed)))
    steps, started = epochs * steps_per_epoch, time.time()
    losses: list[torch.Tensor] = []
    bar = tqdm(total=stop_after or steps, unit="step", smoothing=0.05, mininterval=1)
    for epoch in range(epochs):
        if epoch:
            documents = tokenize(tokenizer, corpus.documents(seed + epoch))
        for ids in batches(documents, tokens_per_step, tokenizer.pad_token_id, random.Random(seed + epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(len(losses), steps, peak=2e-3)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda" or bool(sizes)):
                loss, z_loss = loss_of(model, ids.to(device), tokenizer.pad_token_id)
            (loss + 1e-3 * z_loss).backward()  # type: ignore[no-untyped-call]  # torch's own, without types
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            bar.update()
            if len(losses) % 100 == 0:
                bar.set_postfix(loss=f"{torch.stack(losses[-100:]).mean():.3f}")
            if len(losses) == stop_after:
                return model, tokenizer, torch.stack(losses).tolist()
    bar.close()
    print(f"{len(losses)} steps in {time.time() - started:.0f} s")
    return model, tokenizer, torch.stack(losses).tolist()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, losses: list[float], out: Path) -> None:
    """Write what a server reads, the loss curve as training.json (means of 50 steps), and its picture."""
    save_model(model, out)
    tokenizer.save_pretrained(out)
    curve = [sum(losses[i : i + 50]) / len(losses[i : i + 50]) for i in range(0, len(losses), 50)]
    (out / "training.json").write_text(json.dumps({"mean_loss_of_50_steps": [round(x, 3) for x in curve]}) + "\n")
    from helpers import plots  # imported here: the GPU host that trains need not hold the plotting library

    plots.loss_curve(curve, every=50).savefig(out / "loss.png")


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Weights and config alone: the draft model's tokenizer is the small Llama's."""
    out.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.bfloat16)  # type: ignore[arg-type]  # as above
    model.save_pretrained(out)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: helpers/tiny/model, or helpers/tiny/draft")
    parser.add_argument("--epochs", type=int, help="default: 50, or 3 for the draft model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draft", action="store_true", help="train the sibling that guesses for it")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.draft:  # few epochs, hence small steps
        trained = train(options.epochs or 3, tokens_per_step=4096, device=device, seed=options.seed, **DRAFT)
        return save_model(trained[0], options.out or DRAFT_DIR)
    if device == "cpu":
        print(
            "No CUDA GPU found: on a CPU this takes many hours (about 3,000 tokens/s). Ctrl-C stops it; nothing is written before the end."
        )
    trained = train(options.epochs or 50, tokens_per_step=16384, device=device, seed=options.seed)
    save(*trained, options.out or MODEL_DIR)


if __name__ == "__main__":
    main()
