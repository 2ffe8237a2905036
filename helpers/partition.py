"""Who holds what: layers on a pipeline stage, KV heads and vocabulary rows on a tensor-parallel rank."""

from helpers.errors import WorkshopError
from helpers.models import ModelConfig


class LayoutError(WorkshopError):
    """A parallel layout that vLLM would refuse."""


def positive(**sizes: object) -> None:
    """Raises LayoutError unless every named size is a whole number above zero."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise LayoutError(f"{name} is {value!r}; it must be a whole number, 1 or more.")


def kv_heads_per_rank(config: ModelConfig, tp: int) -> int:
    """KV heads a tensor-parallel rank keeps: at least one, so beyond num_key_value_heads ranks hold copies."""
    return max(1, config.num_key_value_heads // tp)


def stage_layers(layers: int, pp: int) -> list[int]:
    """Layers on each pipeline stage: layers // pp, and one more on stages pp-2, pp-3, ... while some remain.

    Raises LayoutError when pp exceeds the layers. Source: get_pp_indices in vLLM distributed/utils.py.
    """
    positive(pp=pp)
    if pp > layers:
        raise LayoutError(f"Pipeline parallel size {pp} exceeds the model's {layers} layers; use {layers} or fewer.")
    counts = [layers // pp] * pp
    for i in range(2, layers % pp + 2):
        counts[-i] += 1
    return counts


def padded_vocab(config: ModelConfig) -> int:
    """Rows of the embedding as vLLM allocates it: the vocabulary rounded up to a multiple of 64."""
    return -(-config.vocab_size // 64) * 64
