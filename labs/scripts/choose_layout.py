"""What the deployments of this workshop do with a GPU's memory: a row each, computed by helpers.memory.

python labs/scripts/choose_layout.py [WORD]     only the deployments whose name holds WORD, such as 405b
"""

import sys

from rich.console import Console
from rich.table import Table

from helpers.deployments import catalogue, plan_of
from helpers.hardware import GIB


def main(word: str = "") -> None:
    table = Table()
    table.add_column("deployment", no_wrap=True)
    for heading in (
        "nodes",
        "GPUs",
        "layout",
        "weights\nGiB/GPU",
        "KV cache\nGiB/GPU",
        "requests\nat once",
        "of tokens",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for deployment in catalogue().values():
        if not deployment.shape or word not in deployment.name:
            continue
        plan = plan_of(deployment)
        table.add_row(
            deployment.name, str(deployment.nodes), f"{deployment.gpus} {deployment.gpu}",
            f"TP{deployment.tp} x PP{deployment.pp}", f"{plan.weights_per_gpu / GIB:.1f}", f"{plan.kv_cache_bytes / GIB:.1f}",
            f"{plan.max_concurrency:.1f}", f"{plan.max_model_len:,}",
        )  # fmt: skip
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:2])
