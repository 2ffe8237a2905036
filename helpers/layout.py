"""Which tensor, pipeline and data parallel sizes vLLM accepts for a model."""

from helpers.models import ModelConfig
from helpers.partition import LayoutError, padded_vocab, positive, stage_layers
from helpers.quantization import Quantization
from helpers.weights import layer_weights, shard

__all__ = ["LayoutError", "check_attention", "check_layout"]


def check_attention(config: ModelConfig, tp: int, pp: int) -> None:
    """Raises LayoutError when tp does not divide the attention heads, or pp exceeds the layers."""
    positive(tp=tp)
    stage_layers(config.num_hidden_layers, pp)
    _divides(config, "attention heads", config.num_attention_heads, tp)


def check_layout(config: ModelConfig, *, tp: int = 1, pp: int = 1, dp: int = 1, expert_parallel: bool = False) -> None:
    """Raises LayoutError unless vLLM can cut this model so.

    tp must divide the heads, the padded vocabulary and the MLP's width; KV heads must divide tp or tp them; a mixture
    cuts each expert over tp x dp GPUs unless expert_parallel deals whole experts out instead; what a rank holds of a
    quantised matrix must be whole blocks or groups.
    Source: vLLM model_executor/models, layers/vocab_parallel_embedding.py, quantization/utils/fp8_utils.py.
    """
    positive(dp=dp)
    check_attention(config, tp, pp)
    _check_kv_heads(config, tp)
    _divides(config, "rows of the padded vocabulary", padded_vocab(config), tp)
    _check_mlps(config, tp, dp, expert_parallel)
    if config.quantization:
        _check_quantised(config, tp, dp, expert_parallel)


def _divides(config: ModelConfig, what: str, size: int, ranks: int, name: str = "Tensor parallel size") -> None:
    if size % ranks:
        heads = config.num_attention_heads
        legal = ", ".join(
            str(n) for n in range(1, heads + 1) if heads % n == size % n == 0 and _kv_heads_fit(config, n)
        )
        raise LayoutError(f"{name} {ranks} does not divide the {size} {what} of {config.name}; sizes that do: {legal}.")


def _kv_heads_fit(config: ModelConfig, tp: int) -> bool:
    kv_heads = config.num_key_value_heads
    return config.mla is not None or kv_heads % tp == 0 or tp % kv_heads == 0


def _check_kv_heads(config: ModelConfig, tp: int) -> None:
    kv_heads = config.num_key_value_heads
    if not _kv_heads_fit(config, tp):
        raise LayoutError(
            f"Tensor parallel size {tp} and the {kv_heads} KV heads of {config.name} do not divide one another; "
            f"use a divisor or a multiple of {kv_heads}."
        )


def _check_mlps(config: ModelConfig, tp: int, dp: int, expert_parallel: bool) -> None:
    experts = config.experts
    if experts is None or experts.dense_layers:
        _divides(config, "columns of the MLP", config.intermediate_size, tp)
    if experts is None:
        return
    if tp > experts.count:
        raise LayoutError(f"Tensor parallel size {tp} exceeds the {experts.count} experts of {config.name}.")
    if experts.shared_size:
        _divides(config, "columns of the shared expert", experts.shared_size, tp)
    if not expert_parallel:
        _divides(config, "columns of an expert", experts.intermediate_size, tp * dp, "Tensor x data parallel size")


def _check_quantised(config: ModelConfig, tp: int, dp: int, expert_parallel: bool) -> None:
    for layer in range(config.num_hidden_layers):
        for weight in layer_weights(config, layer):
            if weight.scheme is None or weight.split == "none":
                continue
            rows, columns, _ = shard(weight, config, tp, dp, expert_parallel)
            if (rows, columns) != (weight.rows, weight.columns):
                _check_whole_blocks(config, weight.name, weight.scheme, rows, columns)


def _check_whole_blocks(config: ModelConfig, name: str, scheme: Quantization, rows: int, columns: int) -> None:
    block_rows, block_columns = scheme.block or (1, scheme.group_size or 1)
    for what, size, block in (("outputs", rows, block_rows), ("inputs", columns, block_columns)):
        if size % block:
            raise LayoutError(
                f"This layout leaves {size} {what} of {name} ({config.name}) on a GPU; {scheme.method} needs "
                f"whole blocks of {block}; use fewer tensor parallel GPUs, or expert parallelism for a mixture."
            )
