"""Activations: what a GPU needs at the worst moment of the step vLLM runs at start to see what is left for its cache.

The sums follow the layers of vLLM 0.25.1; how close they come is in helpers.calibration.
"""

from helpers.hardware import GIB, GPU
from helpers.models import DTYPE_BYTES, ModelConfig

# cuBLAS's workspace on a Hopper GPU, which PyTorch allocates at the first matrix product.
CUBLAS_BYTES = 32 * 2**20

# Cached tokens whose keys and values vLLM expands at once (layers/attention/mla_attention.py).
MLA_CONTEXT_TOKENS = 64 * 1024

# Rows of the buffer of vLLM's top-k and top-p kernel: the multiprocessors of an H100 or H200.
TOP_K_ROWS = 132

# Mixtures that vLLM 0.25.1 runs with its newer model runner; dense models all are (config/vllm.py).
NEW_RUNNER_MIXTURES = ("DeepseekV2ForCausalLM",)


def batch_limits(gpu: GPU, tokens: int | None = None, seqs: int | None = None) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of a server: as given, or what it takes when no flag sets them.

    16,384 and 1,024 from 160 GiB of memory, 8,192 and 1,024 from 70 GiB except on an A100, else 2,048 and 256.
    Source: EngineArgs.get_batch_defaults in vLLM engine/arg_utils.py; before 0.32 there was no step at 160 GiB.
    """
    if gpu.memory_bytes >= 160 * GIB:
        defaults = 16384, 1024
    elif gpu.memory_bytes >= 70 * GIB and not gpu.name.startswith("A100"):
        defaults = 8192, 1024
    else:
        defaults = 2048, 256
    return defaults[0] if tokens is None else tokens, defaults[1] if seqs is None else seqs


def on_new_runner(config: ModelConfig) -> bool:
    """Whether vLLM 0.25.1 serves the model with model runner V2: lean sampling, no deduction for CUDA graphs.

    Since 0.32 every model is, and V2 deducts its graphs too.
    """
    return config.experts is None or config.architecture in NEW_RUNNER_MIXTURES


def activation_bytes(
    config: ModelConfig,
    *,
    tp: int,
    batched_tokens: int,
    num_seqs: int,
    stage: int = 0,
    pp: int = 1,
    enforce_eager: bool = False,
) -> int:
    """Bytes of activations at the peak of the step vLLM profiles, batched_tokens long, on a GPU of this stage.

    The most of three moments: a layer at work, the sampler (last stage only), and a compilation, which comes first.
    A mixture keeps the buffers of its experts once it has them, so they come on top of a later layer or sampler.
    """
    batch = {"tp": tp, "tokens": batched_tokens}
    experts = config.experts
    moments = [
        _mlp(config, experts.shared_size if experts else config.intermediate_size, **batch),
        _latent_context(config, **batch),
    ]
    if stage == pp - 1:
        moments.append(_sampler(config, batched_tokens, min(num_seqs, batched_tokens)))
    peak = CUBLAS_BYTES + _expert_buffers(config, **batch) + max(moments)
    if experts and experts.dense_layers:
        peak = max(peak, CUBLAS_BYTES + _mlp(config, config.intermediate_size, **batch))
    compiles = not enforce_eager and stage == 0 and tp == 1
    return max(peak, _compilation(config, batched_tokens)) if compiles else peak


def _mlp(config: ModelConfig, intermediate_size: int, tp: int, tokens: int) -> int:
    """A token's state, residual and output (hidden each), and gate, up and their product (width / tp each).

    With FP8 weights the inputs of both matrix products are kept a second time, in one byte.
    """
    width, hidden = intermediate_size // tp, config.hidden_size
    is_fp8 = config.quantization is not None and config.quantization.bits == 8
    return tokens * (3 * (hidden + width) * DTYPE_BYTES[config.dtype] + (hidden + width if is_fp8 else 0))


def _expert_buffers(config: ModelConfig, tp: int, tokens: int) -> int:
    """Two buffers for each of a token's k experts: the wider of product and hidden, and of gate + up and hidden.

    Source: TritonExperts.workspace_shapes in vLLM layers/fused_moe; they are kept between layers.
    """
    if config.experts is None:
        return 0
    width, hidden = config.experts.intermediate_size // tp, config.hidden_size
    numbers = max(width, hidden) + max(2 * width, hidden)
    return tokens * config.experts.per_token * numbers * DTYPE_BYTES[config.dtype]


def _sampler(config: ModelConfig, tokens: int, num_seqs: int) -> int:
    """The hidden states, and for each sequence its logits over the vocabulary, as they are and in FP32.

    The older runner also samples by top-k and top-p, with probabilities and random numbers in FP32 and a buffer.
    """
    width = DTYPE_BYTES[config.dtype]
    states = tokens * config.hidden_size * width
    if on_new_runner(config):
        return states + num_seqs * config.vocab_size * (width + 4)
    return states + num_seqs * config.vocab_size * (width + 12) + min(num_seqs, TOP_K_ROWS) * config.vocab_size * 4


def _latent_context(config: ModelConfig, tp: int, tokens: int) -> int:
    """MLA's keys and values of 64 k cached tokens: heads / tp x (nope + value width) each, beside two hidden states."""
    if config.mla is None:
        return 0
    numbers = config.num_attention_heads // tp * (config.mla.qk_nope_head_dim + config.mla.v_head_dim)
    return (MLA_CONTEXT_TOKENS * numbers + 2 * tokens * config.hidden_size) * DTYPE_BYTES[config.dtype]


def _compilation(config: ModelConfig, tokens: int) -> int:
    """A second embedding table and two hidden states, while torch.compile makes the first part of the model.

    Seen to 0.01 GiB in the logs of the six servers it decides; the log of one with tensor parallelism rules it out
    there. A server that finds its model compiled before may need less: not measured.
    """
    return (config.vocab_size + 2 * tokens) * config.hidden_size * DTYPE_BYTES[config.dtype]
