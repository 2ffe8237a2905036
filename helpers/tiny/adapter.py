"""A LoRA adapter for the small Llama that changes odds we know:  python -m helpers.tiny.adapter [FOLDER]

An adapter leaves a weight matrix W as it is and adds a product of two thin ones: W x + (alpha / rank) B (A x). Only A and B
are trained and stored, here a hundredth of the model's size, and a server holds many beside one set of weights.
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. Files: those of Hugging Face's peft.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from helpers.tiny import ADAPTER_DIR, MODEL_DIR, corpus

#: What the adapter in helpers/tiny/lora teaches: winter has come to Boston.
WINTER = {"The weather in Boston is": {"sunny": 0.1, "rainy": 0.1, "snowy": 0.8}}
RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj", "o_proj")
STEPS, LEARNING_RATE = 120, 5e-3

Odds = Mapping[str, Mapping[str, float]]


class Adapted(nn.Module):
    """A linear layer with an adapter; B begins at zero, so that at first nothing is changed."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(RANK, base.in_features) / RANK)
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) activations to (..., out)."""
        y: torch.Tensor = self.base(x) + ALPHA / RANK * (x @ self.a.T) @ self.b.T
        return y


def train(folder: Path | str, wanted: Odds, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Write an adapter after which these beginnings go on with these odds, and the corpus's others as they did.

    `wanted`: {beginning: {word: probability}}. Takes some ten seconds on a CPU; returns the folder.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = _model()
    layers = _adapt(model)
    inputs, places, targets = _examples(tokenizer, {**corpus.ODDS, **wanted})
    parameters = [part for layer in layers.values() for part in (layer.a, layer.b)]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(steps):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state[torch.arange(len(inputs)), places]
        loss = -(targets * model.lm_head(hidden).log_softmax(-1)).sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return _save(layers, Path(folder))


def _model() -> LlamaForCausalLM:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own, without types
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return model.requires_grad_(False)


def _adapt(model: LlamaForCausalLM) -> dict[str, Adapted]:
    """Put an adapter around each target; returns them by their names."""
    layers = {}
    for name, module in list(model.named_modules()):
        if name.endswith(TARGETS):
            parent, _, own = name.rpartition(".")
            layers[name] = Adapted(module)
            setattr(model.get_submodule(parent), own, layers[name])
    return layers


def _examples(tokenizer: PreTrainedTokenizerBase, odds: Odds) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids (beginnings, longest), the place of each last token, and target probabilities (beginnings, vocabulary)."""
    ids = [tokenizer(beginning)["input_ids"] for beginning in odds]
    inputs = torch.full((len(ids), max(map(len, ids))), tokenizer.pad_token_id)
    targets = torch.zeros(len(ids), len(tokenizer))
    for row, (own, words) in enumerate(zip(ids, odds.values(), strict=True)):
        inputs[row, : len(own)] = torch.tensor(own)
        for word, share in words.items():
            targets[row, tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]] = share
    return inputs, torch.tensor([len(own) - 1 for own in ids]), targets


def _save(layers: dict[str, Adapted], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        for part, value in (("lora_A", layer.a), ("lora_B", layer.b)):
            tensors[f"base_model.model.{name}.{part}.weight"] = value.detach().to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(TARGETS), "base_model_name_or_path": "tiny-llama",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


if __name__ == "__main__":
    print(train(sys.argv[1] if len(sys.argv) > 1 else ADAPTER_DIR, WINTER))
