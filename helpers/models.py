"""A model's shape, read from the config.json that comes with its weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helpers import quantization
from helpers.fields import ConfigError, Reader
from helpers.quantization import Quantization

CATALOGUE = Path(__file__).parent / "configs"
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}

MOST_LAYERS = 10_000

DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MIXTURES = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "MiniMaxM2ForCausalLM")
LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
ARCHITECTURES = DENSE + MIXTURES + LATENT


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: `count` MLPs a layer, of which a token uses `per_token` (and all of `shared_size`).

    `intermediate_size` is the width of one, `shared_size` that of all shared ones together. The layers in `dense_layers`
    have an ordinary MLP instead.
    """

    count: int
    per_token: int
    intermediate_size: int
    shared_size: int = 0
    dense_layers: frozenset[int] = frozenset()
    router_bias: bool = False
    router_in_float32: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): the cache holds kv_lora_rank + rope numbers a layer, not heads."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that decide memory and speed, under the names config.json gives them.

    `dtype` is the one vLLM serves: a float32 checkpoint is served in bfloat16.
    `qk_norm` is "none", "head" (one weight of head_dim) or "full" (a weight for every head's every element).
    """

    name: str
    architecture: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rotary_dim: int
    dtype: str = "bfloat16"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    sliding_window: int | None = None
    experts: Experts | None = None
    mla: LatentAttention | None = None
    quantization: Quantization | None = None

    @classmethod
    def from_json(cls, path: str | Path) -> "ModelConfig":
        """Reads a config.json, or the one in a folder, a Hugging Face snapshot or a `models--...` cache folder.

        Raises ConfigError when there is none, when it is not JSON, or when from_dict refuses it.
        """
        file = _find_config(Path(path).expanduser())
        try:
            fields = json.loads(file.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{file} is not readable JSON ({error}); expected a model's config.json.") from None
        return cls.from_dict(fields, name=_model_name(file))

    @classmethod
    def from_dict(cls, fields: dict[str, Any], name: str = "config.json") -> "ModelConfig":
        """The ModelConfig of a parsed config.json. Raises ConfigError naming the field that is missing or wrong."""
        if not isinstance(fields, dict):
            raise ConfigError(f"{name} holds a {type(fields).__name__}, not the object of fields a config.json is.")
        architecture = _architecture(fields, name)
        read = Reader(fields, f"{name} ({architecture})")
        heads, hidden = read.size("num_attention_heads"), read.size("hidden_size")
        mla = _mla(read) if architecture in LATENT else None
        head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla else _head_dim(read, hidden, heads)
        attention_bias = bool(fields.get("attention_bias", False))
        layers = read.size("num_hidden_layers")
        if layers > MOST_LAYERS:
            read.fail(f"'num_hidden_layers' is {layers}; no model has more than {MOST_LAYERS}.")
        return cls(
            name=name,
            architecture=architecture,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=heads if mla else _kv_heads(read, heads),
            head_dim=head_dim,
            intermediate_size=read.size("intermediate_size"),
            vocab_size=read.size("vocab_size"),
            max_position_embeddings=read.size("max_position_embeddings"),
            rotary_dim=_rotary_dim(read, head_dim, mla),
            dtype=_dtype(read),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
            o_bias=architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and attention_bias,
            mlp_bias=bool(fields.get("mlp_bias", False)),
            qk_norm=_qk_norm(architecture, fields),
            sliding_window=_sliding_window(read, layers),
            experts=_experts(read, architecture, layers),
            mla=mla,
            quantization=quantization.parse(fields.get("quantization_config"), name),
        )

    @property
    def weight_bits(self) -> int:
        """Bits of a number in the linear layers, as stored."""
        return self.quantization.bits if self.quantization else 16

    def quantized(self, scheme: str) -> "ModelConfig":
        """The same model with its linear layers stored as "fp8" (one scale a tensor), "fp8_block" or "int4".

        Raises ConfigError for any other scheme.
        """
        if scheme not in quantization.SCHEMES:
            raise ConfigError(f"Unknown quantisation {scheme!r}: choose {', '.join(quantization.SCHEMES)}.")
        return replace(self, quantization=quantization.SCHEMES[scheme])


def catalogue() -> list[str]:
    """Names that load() knows without a path."""
    return sorted(file.stem for file in CATALOGUE.glob("*.json"))


def load(model: str | Path) -> ModelConfig:
    """A ModelConfig from a name in the catalogue ("llama-3.1-70b"), a Hub id of one, or a path from_json takes.

    Raises ConfigError for any other name, and for a config.json that cannot be used.
    """
    text = str(model)
    short = text.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-instruct")
    if short in catalogue() and not Path(text).expanduser().exists():
        return ModelConfig.from_json(CATALOGUE / f"{short}.json")
    if Path(text).expanduser().exists():
        return ModelConfig.from_json(text)
    raise ConfigError(
        f"No model {text!r}: it is no file or folder here, and the catalogue has {', '.join(catalogue())}."
    )


def _find_config(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise ConfigError(f"There is no {path}; give a config.json or a folder that holds one.")
    candidates = [path / "config.json", *sorted(path.glob("snapshots/*/config.json"), key=lambda p: -p.stat().st_mtime)]
    main = path / "refs" / "main"
    if main.is_file():
        candidates.insert(1, path / "snapshots" / main.read_text().strip() / "config.json")
    for file in candidates:
        if file.is_file():
            return file
    raise ConfigError(f"The folder {path} holds no config.json; give the folder the model's weights are in.")


def _model_name(file: Path) -> str:
    """What to call the model of a file: its own name, its folder's, or the one in `models--org--name/snapshots/...`."""
    if file.stem != "config":
        return file.stem
    folder = file.absolute().parent
    return folder.parents[1].name.rsplit("--", 1)[-1] if folder.parent.name == "snapshots" else folder.name


def _architecture(fields: dict[str, Any], name: str) -> str:
    named = fields.get("architectures")
    if not isinstance(named, list) or not named:
        raise ConfigError(f"{name}: the field 'architectures' is missing; it should hold a name such as {DENSE[0]!r}.")
    if named[0] not in ARCHITECTURES:
        raise ConfigError(
            f"{name}: 'architectures' says {named[0]}, which this arithmetic does not know; "
            f"it knows {', '.join(ARCHITECTURES)}."
        )
    return str(named[0])


def _head_dim(read: Reader, hidden: int, heads: int) -> int:
    if read.fields.get("head_dim") is None and hidden % heads:
        read.fail(f"'hidden_size' {hidden} is no multiple of 'num_attention_heads' {heads}, and 'head_dim' is missing.")
    return read.size("head_dim", hidden // heads)


def _kv_heads(read: Reader, heads: int) -> int:
    kv_heads = read.size("num_key_value_heads", heads)
    if heads % kv_heads:
        read.fail(f"'num_key_value_heads' {kv_heads} does not divide 'num_attention_heads' {heads}.")
    return kv_heads


def _rotary_dim(read: Reader, head_dim: int, mla: LatentAttention | None) -> int:
    if mla:
        return mla.qk_rope_head_dim
    return read.size("rotary_dim", head_dim)


def _dtype(read: Reader) -> str:
    dtype = read.fields.get("dtype") or read.fields.get("torch_dtype") or "bfloat16"
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in ("float32", "float16", "bfloat16"):
        read.fail(f"'torch_dtype' is {dtype!r}; it must be bfloat16, float16 or float32.")
    return "bfloat16" if dtype == "float32" else dtype


def _qk_norm(architecture: str, fields: dict[str, Any]) -> str:
    if architecture == "MiniMaxM2ForCausalLM":
        return "full" if fields.get("use_qk_norm", True) else "none"
    return "head" if architecture.startswith("Qwen3") else "none"


def _sliding_window(read: Reader, layers: int) -> int | None:
    """The window when every layer has one. vLLM groups layers that differ, which this arithmetic does not model."""
    fields = read.fields
    window = read.size_or_none("sliding_window") if fields.get("use_sliding_window", True) else None
    kinds = set(read.list_of(str, "layer_types"))
    first_windowed = read.count("max_window_layers") if fields.get("use_sliding_window") else 0
    if window is None or kinds == {"full_attention"} or first_windowed >= layers:
        return None
    if len(kinds) > 1 or first_windowed > 0:
        read.fail("'layer_types' mixes sliding-window and full attention; only models with one kind are covered.")
    return window


def _mla(read: Reader) -> LatentAttention:
    return LatentAttention(
        kv_lora_rank=read.size("kv_lora_rank"),
        q_lora_rank=read.size_or_none("q_lora_rank"),
        qk_nope_head_dim=read.size("qk_nope_head_dim"),
        qk_rope_head_dim=read.size("qk_rope_head_dim"),
        v_head_dim=read.size("v_head_dim"),
    )


def _experts(read: Reader, architecture: str, layers: int) -> Experts | None:
    if architecture in DENSE or (architecture in LATENT and read.fields.get("n_routed_experts") is None):
        return None
    is_deepseek, is_qwen = architecture in LATENT, architecture == "Qwen3MoeForCausalLM"
    count = read.size("n_routed_experts" if is_deepseek else "num_experts" if is_qwen else "num_local_experts")
    per_token = read.size("num_experts_per_tok")
    if per_token > count:
        read.fail(f"'num_experts_per_tok' is {per_token}, more than the {count} experts there are.")
    size = read.size("moe_intermediate_size" if is_deepseek or is_qwen else "intermediate_size")
    return Experts(
        count=count,
        per_token=per_token,
        intermediate_size=size,
        shared_size=size * read.count("n_shared_experts") if is_deepseek else 0,
        dense_layers=_dense_layers(read, layers),
        router_bias=bool(read.fields.get("use_routing_bias")) or read.fields.get("topk_method") == "noaux_tc",
        router_in_float32=architecture == "MiniMaxM2ForCausalLM",
    )


def _dense_layers(read: Reader, layers: int) -> frozenset[int]:
    """Layers with an ordinary MLP: DeepSeek's first_k_dense_replace, Qwen's mlp_only_layers, and steps left out."""
    first_dense = read.count("first_k_dense_replace")
    listed = set(read.list_of(int, "mlp_only_layers"))
    step, frequency = read.size("decoder_sparse_step", 1), read.size("moe_layer_freq", 1)
    return frozenset(i for i in range(layers) if i < first_dense or i in listed or (i + 1) % step or i % frequency)
