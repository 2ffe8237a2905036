"""The fastest a model can be served: what memory, arithmetic and links allow, before any real server's losses."""

from helpers.hardware import GPU, get_gpu
from helpers.kv_cache import kv_bytes_per_layer
from helpers.layout import check_layout
from helpers.models import DTYPE_BYTES, ModelConfig
from helpers.partition import LayoutError, positive, stage_layers
from helpers.weights import active_parameter_count, active_weight_bytes


def decode_seconds(
    config: ModelConfig,
    gpu: str | GPU,
    *,
    tp: int = 1,
    pp: int = 1,
    batch: int = 1,
    context: int = 0,
    dtype: str = "auto",
) -> float:
    """Least seconds for one more token of each of `batch` requests, each with `context` tokens in its cache.

    On every stage max(bytes read / bandwidth, 2 x parameters used x requests / FLOP/s), the stages one after another:
    bytes read = weights / (tp x pp) + requests x context x KV bytes a token. With pp stages, batch / pp requests are on
    each at a time, so every stage reads its weights for each group; one request gains nothing from pp.
    A mixture reads the experts its router picks, taken as spread evenly. Communication is left out.
    Raises LayoutError for a layout vLLM refuses, a batch below 1 or a context below 0, HardwareError for a GPU it does
    not know.
    Source: the roofline of Pope et al., Efficiently Scaling Transformer Inference, 2022.
    """
    gpu = get_gpu(gpu)
    positive(batch=batch)
    _not_negative(context=context)
    check_layout(config, tp=tp, pp=pp)
    requests = batch / min(pp, batch)
    layers = config.num_hidden_layers
    cache = requests * _attended(config, context) * layers * kv_bytes_per_layer(config, tp=tp, dtype=dtype)
    reading = (active_weight_bytes(config, requests) / tp + cache) / gpu.bandwidth
    computing = 2 * active_parameter_count(config) * requests / (tp * gpu.flops(config.weight_bits))
    return max(reading, computing)


def decode_tokens_per_second(
    config: ModelConfig,
    gpu: str | GPU,
    *,
    tp: int = 1,
    pp: int = 1,
    batch: int = 1,
    context: int = 0,
    dtype: str = "auto",
) -> float:
    """Most tokens a second all `batch` requests can get together: batch / decode_seconds. See there for the rest."""
    return batch / decode_seconds(config, gpu, tp=tp, pp=pp, batch=batch, context=context, dtype=dtype)


def ttft_seconds(config: ModelConfig, gpu: str | GPU, *, tp: int = 1, pp: int = 1, prompt_tokens: int) -> float:
    """Least seconds from a prompt to its first token, alone on the server.

    The larger of arithmetic, (2 x active parameters x tokens + attention) / (tp x pp x FLOP/s), and of reading the
    weights once, stage after stage: weights / (tp x bandwidth). Attention multiplies queries with keys and weights with
    values over the causal half: 2 x tokens^2 x heads x (query + value width) / 2 a layer.
    Raises LayoutError for a layout vLLM refuses and for an empty prompt, HardwareError for an unknown GPU.
    Source: the same roofline; attention's work as in Kaplan et al., Scaling Laws for Neural Language Models, 2020.
    """
    gpu = get_gpu(gpu)
    positive(prompt_tokens=prompt_tokens)
    check_layout(config, tp=tp, pp=pp)
    flops = 2 * active_parameter_count(config) * prompt_tokens + attention_flops(config, prompt_tokens)
    computing = flops / (tp * pp * gpu.flops(config.weight_bits))
    reading = active_weight_bytes(config, prompt_tokens) / (tp * gpu.bandwidth)
    return max(computing, reading)


def attention_flops(config: ModelConfig, tokens: int) -> int:
    """FLOPs of scores and weighted values for a prompt of so many tokens, causal, in all layers."""
    value_dim = config.mla.v_head_dim if config.mla else config.head_dim
    pairs = tokens * _attended(config, tokens) // 2
    return 2 * pairs * config.num_attention_heads * (config.head_dim + value_dim) * config.num_hidden_layers


def tp_bytes_per_step(config: ModelConfig, *, tp: int, tokens: int) -> float:
    """Bytes a GPU sends in one step of so many tokens through all layers under tensor parallelism.

    2 all-reduces a layer (after attention, after the MLP), each 2 (tp - 1) / tp x tokens x hidden x bytes in a ring.
    Raises LayoutError for sizes below 1.
    Source: Shoeybi et al., Megatron-LM, 2019; the ring all-reduce of Patarasuk and Yuan, 2009.
    """
    positive(tp=tp, tokens=tokens)
    message = tokens * config.hidden_size * DTYPE_BYTES[config.dtype]
    return config.num_hidden_layers * 2 * (2 * (tp - 1) / tp) * message


def pp_bytes_per_step(config: ModelConfig, *, pp: int, tokens: int) -> int:
    """Bytes that cross all pp - 1 stage boundaries together in one step: tokens x hidden x bytes at each.

    vLLM sends the residual beside the hidden state, so on its wire it is twice that.
    Raises LayoutError when pp exceeds the layers.
    """
    positive(tokens=tokens)
    boundaries = len(stage_layers(config.num_hidden_layers, pp)) - 1
    return boundaries * tokens * config.hidden_size * DTYPE_BYTES[config.dtype]


def _attended(config: ModelConfig, context: int) -> int:
    return min(context, config.sliding_window or context)


def _not_negative(**sizes: float) -> None:
    for name, value in sizes.items():
        if value < 0:
            raise LayoutError(f"{name} is {value}; it must be 0 or more.")
