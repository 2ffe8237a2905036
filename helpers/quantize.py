"""Write a Llama checkpoint's linear layers in fewer bits, as a checkpoint that vLLM serves (format: compressed-tensors).

    python -m helpers.quantize int8 FOLDER [--model FOLDER]       or from Python: quantize(MODEL_DIR, folder, "int8")

Round to nearest, no calibration data: each weight is divided by a scale and rounded. Tools such as llm-compressor choose
the roundings with the help of some text (GPTQ, AWQ), which pays for 4 bits. Embedding, head and norms stay as they are.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from helpers.errors import WorkshopError
from helpers.tiny import MODEL_DIR

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS = "model.safetensors"
BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class QuantizeError(WorkshopError):
    """A checkpoint that cannot be quantised this way."""


@dataclass(frozen=True)
class Way:
    """How the numbers are stored: compressed-tensors' name of the format, and its scheme of weights and activations."""

    format: str
    weights: dict[str, Any]
    activations: dict[str, Any] | None = None


def _each_token(kind: str) -> dict[str, Any]:
    """Activations are rounded too, while serving, with a scale for each token."""
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}


def _by_channel(kind: str) -> dict[str, Any]:
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}


#: W8A8 computes in 8 bits. INT4 is for the weights alone (W4A16): one scale for 32 of them.
WAYS = {
    "fp8": Way("float-quantized", _by_channel("float"), _each_token("float")),
    "int8": Way("int-quantized", _by_channel("int"), _each_token("int")),
    "int4": Way("pack-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}),
}  # fmt: skip


def quantize(model: Path | str, folder: Path | str, way: str) -> Path:
    """Write `model`'s checkpoint into `folder`, its linear layers as `way` ("fp8", "int8", "int4") says; returns the folder.

    Raises QuantizeError for a way that is not known, or a model whose weights are not one model.safetensors.
    """
    model, folder = Path(model), Path(folder)
    if way not in WAYS:
        raise QuantizeError(f"There is no way {way!r} to quantise; choose one of {', '.join(WAYS)}.")
    if not (model / WEIGHTS).is_file():
        raise QuantizeError(f"{model} has no {WEIGHTS}; larger checkpoints come in pieces and want llm-compressor.")
    scheme = QuantizationScheme(
        targets=["Linear"], weights=WAYS[way].weights, input_activations=WAYS[way].activations, format=WAYS[way].format
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / WEIGHTS).items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in LINEAR:
            tensors |= {f"{layer}.{part}": value for part, value in _compressed(tensor, scheme).items()}
        else:
            tensors[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if (model / name).is_file():
            shutil.copy(model / name, folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = _described(scheme)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _compressed(weight: torch.Tensor, scheme: QuantizationScheme) -> dict[str, torch.Tensor]:
    """(out, in) weights as compressed-tensors stores them: rounded numbers, scales, and what else the format needs."""
    size = scheme.weights.group_size or weight.shape[1]
    groups = weight.float().reshape(weight.shape[0], -1, size)
    scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    kept = weight.dtype if scheme.weights.group_size else torch.float32  # vLLM's kernels: many scales, or few
    # Dividing in BF16 would round once more.
    layer = {"weight": weight.float(), "weight_scale": scales.to(kept).float()}
    stored = BaseCompressor.get_value_from_registry(scheme.format).compress(layer, scheme)
    stored["weight_scale"] = stored["weight_scale"].to(kept)
    return {part: value.contiguous() for part, value in stored.items()}


def rounded(weights: torch.Tensor, way: str) -> tuple[list[float], list[float]]:
    """The values that a way can store for these weights of one row or group, and what the weights become.

    `weights`: (n,). The first list has every storable number times the scale, the second one n values.
    """
    args = QuantizationScheme(targets=["Linear"], weights=WAYS[way].weights).weights.model_copy(
        update={"group_size": None}
    )
    args.strategy = "tensor"
    scale, zero = calculate_qparams(weights.float().min(), weights.float().max(), args)
    if args.type == "float":
        numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        numbers = numbers[numbers.isfinite()]
    else:
        numbers = torch.arange(-(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1)).float()
    new = fake_quantize(weights.float(), scale, zero, args)
    return (numbers * scale).tolist(), new.tolist()


def layer_weights(name: str = "model.layers.4.mlp.up_proj", model: Path | str = MODEL_DIR) -> torch.Tensor:
    """(out, in) weights of one linear layer of a checkpoint. Raises KeyError for a layer it does not have."""
    return load_file(Path(model) / WEIGHTS)[f"{name}.weight"]


def bytes_of(folder: Path | str) -> int:
    """Bytes of a checkpoint's tensors."""
    return sum(tensor.nbytes for tensor in load_file(Path(folder) / WEIGHTS).values())


def _described(scheme: QuantizationScheme) -> dict[str, Any]:
    """What a config.json says of it."""
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=scheme.format, quantization_status="compressed", ignore=["lm_head"]
    )
    said: dict[str, Any] = json.loads(config.model_dump_json(exclude_none=True))
    return said


def main() -> None:
    """Runs the command; ends with the sentence for a checkpoint that cannot be quantised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path, help="where the new checkpoint goes")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="default: the small Llama")
    options = parser.parse_args()
    try:
        print(quantize(options.model, options.folder, options.way))
    except QuantizeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
