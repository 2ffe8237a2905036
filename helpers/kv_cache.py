"""The KV cache: bytes a token takes, and the tokens a server says it has room for."""

from helpers.fields import ConfigError
from helpers.layout import check_attention
from helpers.models import DTYPE_BYTES, ModelConfig
from helpers.partition import kv_heads_per_rank, positive, stage_layers


def kv_dtype(config: ModelConfig, dtype: str = "auto") -> str:
    """The type the cache is kept in: "auto" is the model's own, even for FP8 weights, unless its config asks for FP8.

    Raises ConfigError for a type it does not know.
    """
    if dtype == "auto":
        return "fp8" if config.quantization and config.quantization.fp8_kv_cache else config.dtype
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"Unknown KV cache type {dtype!r}: choose auto, {', '.join(DTYPE_BYTES)}.")
    return dtype


def kv_bytes_per_layer(config: ModelConfig, *, tp: int = 1, dtype: str = "auto") -> int:
    """Bytes one token takes in one layer on one GPU: 2 (K and V) x KV heads on the rank x head_dim x bytes.

    MLA keeps one latent vector instead, (kv_lora_rank + qk_rope_head_dim) x bytes, the same on every rank.
    Raises ConfigError for an unknown type of cache.
    Source: vLLM v1/kv_cache_interface.py (FullAttentionSpec, MLAAttentionSpec); the GQA and DeepSeek-V2 papers.
    """
    width = DTYPE_BYTES[kv_dtype(config, dtype)]
    if config.mla:
        return (config.mla.kv_lora_rank + config.mla.qk_rope_head_dim) * width
    return 2 * kv_heads_per_rank(config, tp) * config.head_dim * width


def kv_bytes_per_token(config: ModelConfig, *, tp: int = 1, pp: int = 1, dtype: str = "auto") -> int:
    """Bytes of KV cache one token takes on the fullest GPU.

    2 (K and V) x layers on the longest stage x KV heads on a rank x head_dim x bytes.
    A rank keeps at least one KV head, so tp beyond num_key_value_heads saves nothing.
    MLA stores one latent vector per layer and repeats it on every rank.

    Raises LayoutError when tp does not divide the attention heads or pp exceeds the layers.
    Source: vLLM v1/kv_cache_interface.py; the GQA and DeepSeek-V2 papers.
    """
    check_attention(config, tp, pp)
    return max(stage_layers(config.num_hidden_layers, pp)) * kv_bytes_per_layer(config, tp=tp, dtype=dtype)


def kv_blocks(
    config: ModelConfig,
    available_bytes: float | list[float],
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: str = "auto",
    block_size: int = 16,
) -> int:
    """Blocks of `block_size` tokens that fit: the least, over the stages, of available // (layers x bytes of a block).

    `available_bytes` is what every GPU has for its cache, or a list with one figure a pipeline stage.
    Raises ConfigError for negative bytes or another number of stages, LayoutError for a layout vLLM refuses.
    Source: get_kv_cache_configs in vLLM v1/core/kv_cache_utils.py.
    """
    check_attention(config, tp, pp)
    positive(block_size=block_size)
    available = list(available_bytes) if isinstance(available_bytes, list | tuple) else [available_bytes] * pp
    if len(available) != pp or min(available) < 0:
        raise ConfigError(f"available_bytes is {available_bytes!r}; give 0 bytes or more, or one such figure a stage.")
    page = kv_bytes_per_layer(config, tp=tp, dtype=dtype) * block_size
    layers = stage_layers(config.num_hidden_layers, pp)
    return min(int(size // (page * count)) for size, count in zip(available, layers, strict=True))


def kv_cache_tokens(
    config: ModelConfig,
    available_bytes: float | list[float],
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: str = "auto",
    block_size: int = 16,
    max_model_len: int | None = None,
    in_flight_tokens: int = 0,
) -> int:
    """The "KV cache size" in tokens that a server prints when its GPUs have so many bytes for it: blocks x block_size.

    Exact for a server whose line gives the available memory of its tightest GPU; it prints the first rank's, so with
    pipeline stages, which differ, give a list of one figure a stage. Block size: 16 on CUDA, 64 with FlashMLA, 128 on
    a CPU. Since vLLM 0.25 at the latest the line depends a little on the longest request, and much with a sliding
    window: give `max_model_len` (and for a window `in_flight_tokens`) for that form, see kv_capacity.
    Raises what kv_blocks raises.
    """
    blocks = kv_blocks(config, available_bytes, tp=tp, pp=pp, dtype=dtype, block_size=block_size)
    if max_model_len is None:
        return blocks * block_size
    return kv_capacity(config, blocks, max_model_len, in_flight_tokens, block_size)[0]


def blocks_per_request(config: ModelConfig, max_model_len: int, in_flight_tokens: int, block_size: int = 16) -> int:
    """Blocks the longest request holds: ceil(length / block), or with a sliding window no more than the window needs.

    A windowed request keeps the last window - 1 tokens and those still in flight, and one block since a window may
    begin inside one. In flight: max_num_batched_tokens for each batch under way, pp + 1 of them with asynchronous
    scheduling (CUDA), pp without (CPU); vLLM 0.25 counts one batch.
    Source: SlidingWindowSpec.max_admission_blocks_per_request in vLLM v1/kv_cache_interface.py.
    """
    if config.sliding_window is None:
        return -(-max_model_len // block_size)
    held = min(config.sliding_window - 1 + in_flight_tokens, max_model_len)
    return -(-held // block_size) + 1


def kv_capacity(
    config: ModelConfig, blocks: int, max_model_len: int, in_flight_tokens: int = 0, block_size: int = 16
) -> tuple[int, float]:
    """(tokens, concurrency) as vLLM 0.25 to 0.32 print them for so many blocks: int(concurrency x length), blocks / request.

    Equal to blocks x block_size when the length is whole blocks and attention is full; lengths must be 1 or more.
    Source: get_kv_cache_capacity in vLLM v1/core/kv_cache_utils.py.
    """
    positive(max_model_len=max_model_len, block_size=block_size)
    concurrency = blocks / blocks_per_request(config, max_model_len, in_flight_tokens, block_size)
    return int(concurrency * max_model_len), concurrency
