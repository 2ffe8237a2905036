"""Reading config.json files: the shapes everybody publishes, and sentences for the files nobody can use."""

import json
from dataclasses import replace

import pytest

from helpers.errors import WorkshopError
from helpers.models import ARCHITECTURES, CATALOGUE, ConfigError, ModelConfig, catalogue, load
from helpers.quantization import INT4, Quantization
from helpers.weights import active_parameter_count, layer_weights, parameter_count, stage_weight_bytes, weight_bytes

GIB = 2**30

# Counted from the checkpoints' own index files, or printed on the model cards.
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "mistral-7b-v0.1": 7_241_732_096,
    "deepseek-v2-lite": 15_706_484_224,
}
# Billions, total and active, as the facts and the model cards round them.
MIXTURES = {
    "mixtral-8x7b": (46.70, 12.88),
    "minimax-m2": (228.69, 11.0),
    "deepseek-v3": (671.03, 37.6),
    "qwen3-30b-a3b": (30.5, 3.35),
    "deepseek-v2-lite": (15.7, 2.66),
}
COMPRESSED_FP8 = load("llama-3.1-405b-fp8").quantization


def fields(name: str, **changes) -> dict:
    """A catalogue model's config.json with some fields replaced; None removes one."""
    data = json.loads((CATALOGUE / f"{name}.json").read_text()) | changes
    return {field: value for field, value in data.items() if value is not None}


def llama_70b(quantization: Quantization) -> ModelConfig:
    return replace(load("llama-3.1-70b"), quantization=quantization)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_exactly(name):
    assert parameter_count(load(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_uses_part_of_its_parameters_for_a_token(name):
    total, active = MIXTURES[name]
    assert parameter_count(load(name)) / 1e9 == pytest.approx(total, abs=0.05)
    assert active_parameter_count(load(name)) / 1e9 == pytest.approx(active, abs=0.05)


def test_a_dense_model_uses_all_its_parameters():
    assert active_parameter_count(load("qwen3-14b")) == parameter_count(load("qwen3-14b"))


def test_minimax_bytes_are_those_of_its_checkpoint():
    assert weight_bytes(load("minimax-m2.1")) == 230_121_630_720


def test_weight_bytes_without_quantisation_are_two_a_parameter():
    assert weight_bytes(load("llama-3.1-8b")) == 2 * PARAMETERS["llama-3.1-8b"]


def test_widths_of_the_slides():
    table = {"float16": (16.1, 141.1, 811.7), "fp8": (8.0, 70.6, 405.9), "int4": (4.0, 35.3, 202.9)}
    for dtype, sizes in table.items():
        for name, gigabytes in zip(("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"), sizes, strict=True):
            assert weight_bytes(load(name), dtype) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    with pytest.raises(ConfigError, match="Unknown weight type 'fp7'"):
        weight_bytes(load("llama-3.1-8b"), "fp7")


def test_tied_embeddings_count_once():
    tied = ModelConfig.from_dict(fields("llama-3.1-8b", tie_word_embeddings=True))
    assert PARAMETERS["llama-3.1-8b"] - parameter_count(tied) == 128256 * 4096


def test_biases_norms_and_explicit_head_dim():
    biased = ModelConfig.from_dict(fields("llama-3.1-8b", attention_bias=True, mlp_bias=True))
    assert parameter_count(biased) - PARAMETERS["llama-3.1-8b"] == 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    assert {w.name for w in layer_weights(load("qwen3-14b"), 0)} >= {"model.layers.0.self_attn.q_norm"}
    wide = ModelConfig.from_dict(fields("llama-3.1-8b", head_dim=256))
    assert wide.head_dim == 256


@pytest.mark.parametrize(
    ("config", "layout", "printed_gib", "tolerance"),
    [
        # "Model loading took", vLLM 0.25.1 on H200, measured for the workshop.
        (load("llama-3.1-8b"), {}, 15.0, 0.001),
        (load("llama-3.1-70b"), {"tp": 4}, 32.89, 0.001),
        (load("llama-3.1-70b"), {"tp": 2, "pp": 2}, 32.89, 0.001),
        (load("minimax-m2.1"), {"tp": 4}, 53.75, 0.001),
        # Public logs: vLLM 0.11.2, DeepSeek-R1-0528 at TP8 and Llama-3.3-70B FP8-dynamic at TP4; W8A8 in vLLM PR 12569.
        (load("deepseek-r1-0528"), {"tp": 8}, 79.739, 0.003),
        (llama_70b(COMPRESSED_FP8), {"tp": 4}, 16.9619, 0.001),
        (llama_70b(COMPRESSED_FP8), {}, 67.7229, 0.001),
    ],
)
def test_a_rank_holds_what_model_loading_took(config, layout, printed_gib, tolerance):
    assert max(stage_weight_bytes(config, **layout)) / GIB == pytest.approx(printed_gib, rel=tolerance)


def test_the_first_405b_checkpoint_kept_its_kv_heads_twice():
    """vLLM issue 6746 printed 57.752 GB a GPU at TP8: MLPs in FP8 but for the first and last layer, 16 KV heads."""
    kept = [
        "lm_head",
        *(f"model.layers.{i}.self_attn" for i in range(126)),
        "model.layers.0.mlp",
        "model.layers.125.mlp",
    ]
    scheme = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": kept}
    config = ModelConfig.from_dict(fields("llama-3.1-405b", quantization_config=scheme, num_key_value_heads=16))
    assert stage_weight_bytes(config, tp=8)[0] / GIB == pytest.approx(57.752, rel=0.002)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_int4_checkpoints(method):
    """About 0.5 B a weight and 2.5 B a group of 128, in the linear layers only."""
    scheme = {"quant_method": method, "bits": 4, "group_size": 128}
    config = ModelConfig.from_dict(fields("llama-3.1-70b", quantization_config=scheme))
    linear = 70_553_706_496 - 2 * 128256 * 8192 - 161 * 8192
    assert weight_bytes(config) == linear // 2 + linear // 128 * 5 // 2 + 2 * (2 * 128256 * 8192 + 161 * 8192)


def test_other_schemes():
    assert load("llama-3.1-8b").quantized("int4").quantization == INT4
    per_tensor = ModelConfig.from_dict(fields("llama-3.1-8b", quantization_config={"quant_method": "fp8"}))
    assert weight_bytes(per_tensor) == weight_bytes(load("llama-3.1-8b").quantized("fp8"))
    assert COMPRESSED_FP8.scales == "channel" and COMPRESSED_FP8.ignore == ("lm_head",)
    cached = {"quant_method": "fp8", "kv_cache_scheme": {"type": "float", "num_bits": 8}}
    assert ModelConfig.from_dict(fields("llama-3.1-8b", quantization_config=cached)).quantization.fp8_kv_cache


def test_sliding_windows_are_read_and_switched_off():
    assert load("mistral-7b-v0.1").sliding_window == 4096
    assert load("qwen2.5-7b").sliding_window is None
    every = ModelConfig.from_dict(fields("qwen2.5-7b", use_sliding_window=True, max_window_layers=0))
    assert every.sliding_window == 131072
    with pytest.raises(ConfigError, match="mixes sliding-window and full attention"):
        ModelConfig.from_dict(fields("qwen2.5-7b", use_sliding_window=True, max_window_layers=14))


def test_float32_is_served_in_bfloat16():
    assert ModelConfig.from_dict(fields("llama-3.1-8b", torch_dtype="float32")).dtype == "bfloat16"


def test_load_finds_names_files_folders_and_snapshots(tmp_path):
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text(json.dumps(fields("qwen3-14b")))
    cache = tmp_path / "models--Qwen--Qwen3-14B"
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(tmp_path / "my-model" / "config.json")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abcd")

    assert load("Meta-Llama-3.1-8B-Instruct") == load("meta-llama/Llama-3.1-8B") == load("llama-3.1-8b")
    assert load(tmp_path / "my-model").name == "my-model"
    assert load(tmp_path / "my-model" / "config.json") == load(tmp_path / "my-model")
    assert load(cache).name == load(snapshot).name == "Qwen3-14B"
    assert {load(name).architecture for name in catalogue()} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": None}, r"LlamaForCausalLM\): the field 'num_hidden_layers' is missing"),
        ({"vocab_size": None}, "the field 'vocab_size' is missing"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000; no model has"),
        ({"layer_types": 3}, "'layer_types' is 3; it must be a list of str"),
        ({"hidden_size": 0}, "'hidden_size' is 0; it must be a positive whole number"),
        ({"hidden_size": -4096}, "'hidden_size' is -4096; it must be"),
        ({"num_attention_heads": "32"}, "'num_attention_heads' is '32'; it must be"),
        ({"intermediate_size": 1.5}, "'intermediate_size' is 1.5; it must be"),
        ({"num_key_value_heads": 5}, "'num_key_value_heads' 5 does not divide 'num_attention_heads' 32"),
        ({"hidden_size": 4100}, "'hidden_size' 4100 is no multiple"),
        ({"torch_dtype": "int3"}, "'torch_dtype' is 'int3'"),
        ({"architectures": None}, "'architectures' is missing"),
        ({"architectures": ["Gemma2ForCausalLM"]}, "'architectures' says Gemma2ForCausalLM.*it knows LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "gguf"}}, "quant_method is 'gguf'; this arithmetic knows fp8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 5}}, "bits is 5; it must be 2, 3, 4 or 8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 0}}, "group_size is 0"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, r"has the block \[128\]"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups must hold one scheme"),
    ],
)
def test_bad_configs_are_told_in_one_sentence(change, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        ModelConfig.from_dict(fields("llama-3.1-8b", **change), name="my config")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, WorkshopError)


def test_bad_mixtures():
    with pytest.raises(ConfigError, match="'num_experts_per_tok' is 9, more than the 8 experts"):
        ModelConfig.from_dict(fields("mixtral-8x7b", num_experts_per_tok=9))
    with pytest.raises(ConfigError, match="the field 'kv_lora_rank' is missing"):
        ModelConfig.from_dict(fields("deepseek-v3", kv_lora_rank=None))


def test_bad_files(tmp_path):
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ConfigError, match="is not readable JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds a list"):
        load(tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"the catalogue has .*llama-3\.1-8b"):
        load("llama-9")
    with pytest.raises(ConfigError, match="There is no"):
        ModelConfig.from_json(tmp_path / "nowhere.json")
