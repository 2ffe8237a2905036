"""What a rank of a vLLM server holds, told by itself: `vllm serve ... --worker-extension-cls helpers.rank_report.Report`.

vLLM mixes the class into its workers; with VLLM_SERVER_DEV_MODE=1 `POST /collective_rpc {"method": "holds"}` asks them all.
"""

from collections.abc import Callable
from typing import Any

import psutil

PARTS = ("output_size_per_partition", "input_size_per_partition")


class Report:
    """One method more for every worker."""

    # Of the worker that this is mixed into.
    get_model: Callable[[], Any]
    model_config: Any

    def holds(self) -> dict[str, Any]:
        """name of the process, layers (their numbers), matrices of one layer {name: [outputs, inputs]}, weight_bytes.

        Sizes are those the layers were cut to: on a CPU the weights themselves are packed away after loading.
        """
        model = self.get_model()
        modules, width = dict(model.model.named_modules()), self.model_config.dtype.itemsize
        layers = [number for number, layer in enumerate(model.model.layers) if hasattr(layer, "self_attn")]
        first = f"layers.{layers[0]}."
        cut = {
            name.removeprefix(first).partition(".")[2]: [getattr(module, part) for part in PARTS]
            for name, module in modules.items()
            if name.startswith(first) and all(hasattr(module, part) for part in PARTS)
        }
        numbers = sum(_numbers(module) for module in modules.values())  # each once: layers share the table of angles
        return {
            "name": psutil.Process().cmdline()[0],
            "layers": layers,
            "matrices": cut,
            "weight_bytes": numbers * width,
        }


def _numbers(module: Any) -> int:
    """Numbers in a module itself: a cut matrix, an embedding, a norm's weights, or the table of rotary angles."""
    if all(hasattr(module, part) for part in PARTS):
        return int(module.output_size_per_partition * module.input_size_per_partition)
    if hasattr(module, "num_embeddings_per_partition"):
        return int(module.num_embeddings_per_partition * module.embedding_dim)
    own = [
        *module.parameters(recurse=False),
        *(b for name, b in module.named_buffers(recurse=False) if "cos_sin" in name),
    ]
    return sum(numbers.numel() for numbers in own)
