"""Every weight of a model: its shape, how tensor parallelism cuts it, its bytes. All sums start from this inventory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from helpers.fields import ConfigError
from helpers.models import DTYPE_BYTES, Experts, LatentAttention, ModelConfig
from helpers.partition import kv_heads_per_rank, padded_vocab, stage_layers
from helpers.quantization import Quantization

NAMED_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Weight:
    """One matrix of rows (outputs) x columns (inputs), or a vector with one column.

    `split`: what tensor parallelism cuts: "rows", "columns", "heads" (KV heads, never below one a rank), "vocab" or
    "none" (every rank keeps it whole). `copies` experts of this shape exist, `active` of them serve one token.
    """

    name: str
    rows: int
    columns: int = 1
    split: str = "none"
    bias: bool = False
    copies: int = 1
    active: int = 1
    dtype: str | None = None
    scheme: Quantization | None = None

    @property
    def parameters(self) -> int:
        """Parameters of one copy."""
        return self.rows * self.columns + (self.rows if self.bias else 0)


def inventory(config: ModelConfig) -> Iterator[Weight]:
    """Every weight of the checkpoint vLLM loads (multi-token prediction layers are left out, as it leaves them)."""
    yield _embedding(config)
    for layer in range(config.num_hidden_layers):
        yield from layer_weights(config, layer)
    yield Weight("model.norm", config.hidden_size)
    if not config.tie_word_embeddings:
        yield _head(config)


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model, tied embeddings counted once; quantisation scales are no parameters."""
    return sum(weight.copies * weight.parameters for weight in inventory(config))


def active_parameter_count(config: ModelConfig) -> int:
    """Parameters one token meets: all of a dense model, num_experts_per_tok experts a layer of a mixture."""
    return sum(weight.active * weight.parameters for weight in inventory(config))


def weight_bytes(config: ModelConfig, dtype: str | None = None) -> int:
    """Bytes of the weights.

    Without `dtype`: of the checkpoint as its config.json describes it, scales included, to the byte. With "float16",
    "fp8", "int4" ...: parameters x that width, the figure of a slide. Raises ConfigError for a width it does not know.
    """
    if dtype is None:
        return sum(weight.copies * stored_bytes(weight, config) for weight in inventory(config))
    if dtype not in NAMED_BITS:
        raise ConfigError(f"Unknown weight type {dtype!r}: choose {', '.join(NAMED_BITS)}.")
    return -(-parameter_count(config) * NAMED_BITS[dtype] // 8)


def active_weight_bytes(config: ModelConfig, tokens: float = 1) -> float:
    """Bytes of weights a step of so many tokens reads, if the router spreads them evenly over the experts.

    Of E experts, tokens that choose k each touch E x (1 - (1 - k/E)^tokens) on average.
    """
    return sum(_touched(weight, tokens) * stored_bytes(weight, config) for weight in inventory(config))


def stored_bytes(weight: Weight, config: ModelConfig) -> int:
    """Bytes of one copy of a weight: by its scheme if it is quantised, else in its own or the model's dtype."""
    width = DTYPE_BYTES[weight.dtype or config.dtype]
    if weight.scheme:
        return weight.scheme.matrix_bytes(weight.rows, weight.columns) + (weight.rows * width if weight.bias else 0)
    return weight.parameters * width


def shard(weight: Weight, config: ModelConfig, tp: int, dp: int, expert_parallel: bool) -> tuple[int, int, int]:
    """(rows, columns, copies) of a weight on one GPU. A mixture's experts are spread over tp x dp GPUs."""
    ranks, copies = tp, weight.copies
    if weight.copies > 1:
        ranks = 1 if expert_parallel else tp * dp
        copies = -(-copies // (tp * dp)) if expert_parallel else copies
    rows, columns = weight.rows, weight.columns
    if weight.split == "heads":
        rows = kv_heads_per_rank(config, tp) * (weight.rows // config.num_key_value_heads)
    elif weight.split == "vocab":
        rows = padded_vocab(config) // tp
    elif weight.split == "rows":
        rows = rows // ranks
    elif weight.split == "columns":
        columns = columns // ranks
    return rows, columns, copies


def stage_weight_bytes(
    config: ModelConfig, *, tp: int = 1, pp: int = 1, dp: int = 1, expert_parallel: bool = False
) -> list[int]:
    """Bytes a GPU of each pipeline stage holds once a model is loaded: what "Model loading took" prints.

    The first stage has the embedding, the last the norm and the head (a tied embedding is on both); every stage has a
    table of rotary angles, and MLA layers keep kv_b_proj a second time, unquantised and split for decoding.
    Raises LayoutError when pp exceeds the layers.
    Source: vLLM model_executor/models/llama.py, layers/rotary_embedding, layers/attention/mla_attention.py.
    """

    def on_gpu(weight: Weight) -> int:
        rows, columns, copies = shard(weight, config, tp, dp, expert_parallel)
        return copies * stored_bytes(replace(weight, rows=rows, columns=columns), config)

    counts = stage_layers(config.num_hidden_layers, pp)
    totals = []
    for stage, count in enumerate(counts):
        start = sum(counts[:stage])
        size = sum(on_gpu(weight) for i in range(start, start + count) for weight in layer_weights(config, i))
        is_first, is_last = stage == 0, stage == pp - 1
        if is_first or (is_last and config.tie_word_embeddings):
            size += on_gpu(_embedding(config))
        if is_last:
            size += on_gpu(Weight("model.norm", config.hidden_size))
            size += 0 if config.tie_word_embeddings else on_gpu(_head(config))
        totals.append(size + _rotary_table(config) + count * _absorbed_bytes(config, tp))
    return totals


@lru_cache(maxsize=4096)
def layer_weights(config: ModelConfig, layer: int) -> tuple[Weight, ...]:
    """The weights of one decoder layer, with the quantisation each of them has."""
    prefix = f"model.layers.{layer}."
    named = [replace(weight, name=prefix + weight.name) for weight in _layer(config, layer)]
    return tuple(replace(weight, scheme=_scheme(config, weight)) for weight in named)


def _scheme(config: ModelConfig, weight: Weight) -> Quantization | None:
    """Linear layers, whose names end in _proj or _with_mqa, are quantised unless the config leaves them out."""
    is_linear = weight.name.endswith(("_proj", "_with_mqa"))
    quantised = config.quantization is not None and is_linear and config.quantization.covers(weight.name)
    return config.quantization if quantised else None


def _layer(config: ModelConfig, layer: int) -> Iterator[Weight]:
    yield Weight("input_layernorm", config.hidden_size)
    yield from _latent_attention(config, config.mla) if config.mla else _attention(config)
    yield Weight("post_attention_layernorm", config.hidden_size)
    if config.experts is None or layer in config.experts.dense_layers:
        yield from _mlp("mlp", config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
    else:
        yield from _mixture(config.hidden_size, config.experts)


def _attention(config: ModelConfig) -> Iterator[Weight]:
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    yield Weight("self_attn.q_proj", queries, hidden, "rows", bias=config.qkv_bias)
    yield Weight("self_attn.k_proj", keys, hidden, "heads", bias=config.qkv_bias)
    yield Weight("self_attn.v_proj", keys, hidden, "heads", bias=config.qkv_bias)
    yield Weight("self_attn.o_proj", hidden, queries, "columns", bias=config.o_bias)
    if config.qk_norm == "head":
        yield Weight("self_attn.q_norm", head_dim)
        yield Weight("self_attn.k_norm", head_dim)
    if config.qk_norm == "full":
        yield Weight("self_attn.q_norm", queries, split="rows")
        yield Weight("self_attn.k_norm", keys, split="heads")


def _latent_attention(config: ModelConfig, mla: LatentAttention) -> Iterator[Weight]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank is None:
        yield Weight("self_attn.q_proj", queries, hidden, "rows")
    else:
        yield Weight("self_attn.q_a_proj", mla.q_lora_rank, hidden)
        yield Weight("self_attn.q_a_layernorm", mla.q_lora_rank)
        yield Weight("self_attn.q_b_proj", queries, mla.q_lora_rank, "rows")
    yield Weight("self_attn.kv_a_proj_with_mqa", mla.kv_lora_rank + mla.qk_rope_head_dim, hidden)
    yield Weight("self_attn.kv_a_layernorm", mla.kv_lora_rank)
    yield Weight("self_attn.kv_b_proj", heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank, "rows")
    yield Weight("self_attn.o_proj", hidden, heads * mla.v_head_dim, "columns")


def _mlp(name: str, hidden: int, width: int, copies: int = 1, active: int = 1, bias: bool = False) -> Iterator[Weight]:
    yield Weight(f"{name}.gate_proj", width, hidden, "rows", bias, copies, active)
    yield Weight(f"{name}.up_proj", width, hidden, "rows", bias, copies, active)
    yield Weight(f"{name}.down_proj", hidden, width, "columns", bias, copies, active)


def _mixture(hidden: int, experts: Experts) -> Iterator[Weight]:
    yield Weight("mlp.gate", experts.count, hidden, dtype="float32" if experts.router_in_float32 else None)
    if experts.router_bias:
        yield Weight("mlp.e_score_correction_bias", experts.count, dtype="float32")
    yield from _mlp("mlp.experts", hidden, experts.intermediate_size, experts.count, experts.per_token)
    if experts.shared_size:
        yield from _mlp("mlp.shared_experts", hidden, experts.shared_size)


def _embedding(config: ModelConfig) -> Weight:
    return Weight("model.embed_tokens", config.vocab_size, config.hidden_size, "vocab")


def _head(config: ModelConfig) -> Weight:
    return Weight("lm_head", config.vocab_size, config.hidden_size, "vocab")


def _touched(weight: Weight, tokens: float) -> float:
    untouched: float = (1 - weight.active / weight.copies) ** tokens
    return weight.copies * (1 - untouched)


def _rotary_table(config: ModelConfig) -> int:
    return config.max_position_embeddings * config.rotary_dim * DTYPE_BYTES[config.dtype]


def _absorbed_bytes(config: ModelConfig, tp: int) -> int:
    """Bytes a rank adds in one MLA layer for W_UK and W_UV, kv_b_proj split in two for decoding."""
    if config.mla is None:
        return 0
    mla, heads = config.mla, config.num_attention_heads // tp
    return heads * (mla.qk_nope_head_dim + mla.v_head_dim) * mla.kv_lora_rank * DTYPE_BYTES[config.dtype]
