"""Quantised weights: what a config.json's quantization_config says, and the bytes it makes of a matrix."""

import re
from dataclasses import dataclass
from typing import Any

from helpers.fields import ConfigError

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "awq", "gptq")


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored; embeddings, norms, routers and the output head stay in the model's dtype.

    `scales` says what shares one scale: a "tensor", an output "channel", a "block" of (out, in) weights or a "group" of
    `group_size` inputs.
    """

    method: str
    bits: int
    scales: str = "tensor"
    block: tuple[int, int] | None = None
    group_size: int | None = None
    scale_bytes: int = 4
    zero_points: bool = False
    ignore: tuple[str, ...] = ()
    fp8_kv_cache: bool = False

    def covers(self, name: str) -> bool:
        """Whether the layer of this dotted name is quantised, that is, matches nothing in the ignore list."""
        return not any(_matches(pattern, name) for pattern in self.ignore)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one (rows = outputs, columns = inputs) matrix with its scales and zero points.

        Weights take rows x columns x bits / 8. Scales: one per tensor, per row, per block (rounded up at the edges) or
        per row and group of columns; zero points are packed at the weights' width.
        Source: vLLM model_executor/layers/quantization (fp8, compressed_tensors, auto_awq, auto_gptq).
        """
        count = self._scale_count(rows, columns)
        zeros = count * self.bits // 8 if self.zero_points else 0
        return -(-rows * columns * self.bits // 8) + count * self.scale_bytes + zeros

    def _scale_count(self, rows: int, columns: int) -> int:
        if self.block:
            return -(-rows // self.block[0]) * -(-columns // self.block[1])
        if self.group_size:
            return rows * -(-columns // self.group_size)
        return rows if self.scales == "channel" else 1


FP8 = Quantization("fp8", bits=8)
FP8_BLOCK = Quantization("fp8", bits=8, scales="block", block=(128, 128))
INT4 = Quantization("int4", bits=4, scales="group", group_size=128, scale_bytes=2)
SCHEMES = {"fp8": FP8, "fp8_block": FP8_BLOCK, "int4": INT4}


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return f".{pattern}." in f".{name}."


def parse(settings: dict[str, Any] | None, where: str) -> Quantization | None:
    """The Quantization a `quantization_config` describes, None without one.

    Raises ConfigError, naming the field, for a method or setting that this arithmetic does not know.
    """
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: quantization_config must be an object, not {type(settings).__name__}.")
    method = str(settings.get("quant_method"))
    readers = {"fp8": _fp8, "fbgemm_fp8": _fbgemm, "compressed-tensors": _compressed, "awq": _grouped, "gptq": _grouped}
    if method not in readers:
        raise ConfigError(
            f"{where}: quantization_config.quant_method is {method!r}; this arithmetic knows {', '.join(METHODS)}."
        )
    ignore = settings.get("ignore") or settings.get("ignored_layers") or settings.get("modules_to_not_convert") or []
    if not isinstance(ignore, list) or any(not isinstance(name, str) for name in ignore):
        raise ConfigError(
            f"{where}: quantization_config lists the layers it leaves out as {ignore!r}; names are needed."
        )
    kv_scheme = settings.get("kv_cache_scheme")
    fp8_cache = isinstance(kv_scheme, dict) and kv_scheme.get("type") == "float" and kv_scheme.get("num_bits") == 8
    common = {"ignore": tuple(ignore), "fp8_kv_cache": fp8_cache}
    return readers[method](settings, where, common)


def _fp8(settings: dict[str, Any], where: str, common: dict[str, Any]) -> Quantization:
    block = settings.get("weight_block_size")
    if block is None:
        return Quantization("fp8", bits=8, **common)
    return Quantization("fp8", bits=8, scales="block", block=_block(block, where), **common)


def _fbgemm(settings: dict[str, Any], where: str, common: dict[str, Any]) -> Quantization:
    return Quantization("fbgemm_fp8", bits=8, scales="channel", **common)


def _compressed(settings: dict[str, Any], where: str, common: dict[str, Any]) -> Quantization:
    groups = settings.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    schemes: list[Any] = [group.get("weights") for group in groups if isinstance(group, dict)]
    if not schemes or any(not isinstance(scheme, dict) or scheme != schemes[0] for scheme in schemes):
        raise ConfigError(
            f"{where}: quantization_config.config_groups must hold one scheme for all layers, found {len(schemes)}."
        )
    scheme = schemes[0]
    bits = _width(scheme.get("num_bits"), "config_groups.weights.num_bits", where)
    strategy = scheme.get("strategy", "tensor")
    if strategy in ("tensor", "channel"):
        return Quantization("compressed-tensors", bits, strategy, **common)
    if strategy == "block":
        block = _block(scheme.get("block_structure"), where)
        return Quantization("compressed-tensors", bits, "block", block=block, **common)
    if strategy not in ("group", "tensor_group"):
        raise ConfigError(f"{where}: compressed-tensors strategy {strategy!r} is not tensor, channel, block or group.")
    is_float4 = scheme.get("type") == "float" and bits == 4
    return Quantization(
        "compressed-tensors",
        bits,
        "group",
        group_size=_group(scheme.get("group_size"), where),
        scale_bytes=1 if is_float4 else 2,
        zero_points=not scheme.get("symmetric", True),
        **common,
    )


def _grouped(settings: dict[str, Any], where: str, common: dict[str, Any]) -> Quantization:
    method = settings["quant_method"]
    bits = _width(settings.get("bits", settings.get("w_bit")), "bits", where)
    group_size = settings.get("group_size", settings.get("q_group_size", 128))
    if group_size == -1:
        return Quantization(method, bits, "channel", scale_bytes=2, zero_points=True, **common)
    group_size = _group(group_size, where)
    return Quantization(method, bits, "group", group_size=group_size, scale_bytes=2, zero_points=True, **common)


def _width(bits: Any, field: str, where: str) -> int:
    if bits not in (2, 3, 4, 8):
        raise ConfigError(f"{where}: quantization_config.{field} is {bits!r}; it must be 2, 3, 4 or 8 bits a weight.")
    return int(bits)


def _group(size: object, where: str) -> int:
    if not isinstance(size, int) or size <= 0:
        raise ConfigError(f"{where}: quantization_config.group_size is {size!r}; it must be a positive whole number.")
    return size


def _block(block: object, where: str) -> tuple[int, int]:
    if not isinstance(block, list | tuple) or len(block) != 2 or any(not isinstance(n, int) or n <= 0 for n in block):
        raise ConfigError(
            f"{where}: quantization_config has the block {block!r}; it must be two sizes such as [128, 128]."
        )
    return block[0], block[1]
