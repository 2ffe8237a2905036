"""slurm/MODELS.md: what can be deployed, in which layout, with what room, how fast it was, and what to mind.

python -m helpers.models_page            # whether the page is as recipes and data have it today
python -m helpers.models_page --write    # make it so
"""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from helpers import memory, parallel_data
from helpers.bench_log import figures
from helpers.calibration import measured, measured_memory
from helpers.deployments import FOLDER, Deployment, catalogue, plan_of
from helpers.hardware import GIB, get_gpu
from helpers.layout_chooser import label_of
from helpers.models import load

PAGE = FOLDER / "MODELS.md"
MEASURED_GPU = "H200"
SINGLE = ", single run"
#: Runs of helpers/data/h200x4.json that are not of the 70B: model, layout, GPUs. The 70B's are read by parallel_data.
OTHERS = {
    "8b_tp1": ("llama-3.1-8b", "TP1", 1),
    "405b-fp8_tp4": ("llama-3.1-405b-fp8", "TP4", 4),
    "mm_tp4": ("minimax-m2.1", "TP4", 4),
}

HEAD = """\
# Models

What is ready to be deployed here, computed and measured. This page is made from the files of this folder and from
[the data](../helpers/data/bench/README.md): `python -m helpers.models_page --write` renews it, a test compares.

## Ready to start

`python -m helpers.slurm submit NAME`, or `sbatch slurm/NAME.sbatch`. Memory is what `helpers.memory` computes for the fullest
GPU, in GiB; *tokens/s* what was measured in this layout, without the file's further flags, for one request and for the most that were
tried at once.
"""
MIND = """\
## What to mind

- **Weights** of all measured servers were random values in the real shapes: speed and memory are the real model's, text is not.
- **GPUs**: only H200 were at hand, up to four of one host. Figures for H100 are computed, and so is everything over several
  nodes with a real network between them. An H100 reads its memory at {share:.0%} of an H200's speed, which is what
  bounds the tokens/s of a single request.
- **DeepSeek-R1** was not started: eight H200 were not at hand. The memory sums for its kind of cache (MLA) were tested with
  DeepSeek-V2-Lite, in the table above.
- **MiniMax-M2.1** ran with `VLLM_USE_DEEP_GEMM=0`, and its router was random: above one request its figures are too good, for a
  random router sends many tokens to the same experts.
- **vLLM** 0.25.1 was measured, and 0.32 is what this repository installs.
- Another model: [any-model.sbatch](any-model.sbatch), after `python -m helpers.memory MODEL --gpu H100 --tp 4`.
"""


def page() -> str:
    """The whole page as Markdown."""
    share = get_gpu("H100").bandwidth / get_gpu(MEASURED_GPU).bandwidth
    speed = SPEEDS.format(more=parallel_data.speed(parallel_data.four_gpus(), "TP4", 128))
    parts = [
        HEAD,
        markdown(ready()),
        *reasons(),
        "## Measured\n",
        speed,
        markdown(speeds()),
        "## Memory, foreseen and printed\n",
    ]
    return "\n".join([*parts, MEMORY, markdown(rooms()), MIND.format(share=share)])


SPEEDS = """\
Tokens a second of all requests together, by requests at once, 512 tokens in and 128 out. Medians of three, each of one round of
requests that begin together, of the 8B mostly two. A *single run* is of another day and host, sent two or three rounds, and for
one request 128 tokens in. More rounds make it faster where requests are many: the 70B's TP4 wrote {more:,.0f} so with 128. Rows of
different hosts do not compare to the last per cent.
"""
MEMORY = """\
Tokens of KV cache that servers printed, and what `helpers.memory` says, on H200s. One is far off, and should be: with a sliding
window vLLM 0.25.1 counted one batch in flight, and 0.32, which the sums follow, counts two.
"""


def ready() -> pd.DataFrame:
    """A row for each deployment of a known model: where, how, what room, how fast."""
    rows = []
    for name, found in catalogue().items():
        if not found.shape:
            continue
        plan, parts = plan_of(found), plan_of(found).breakdown
        nodes = f"{found.nodes} × {found.gpus_per_node}" if found.nodes > 1 else f"{found.gpus_per_node}"
        rows.append(
            {
                "deployment": f"[{name}]({name}.sbatch)",
                "model": f"[{found.model}](https://huggingface.co/{found.model})",
                "GPUs": f"{nodes} {found.gpu}",
                "layout": label_of(found.tp, found.pp, found.dp),
                "weights": f"{parts['weights'] / GIB:.1f}",
                "cache": f"{parts['kv_cache'] / GIB:.1f}",
                "tokens of cache": f"{plan.kv_cache_tokens:,}",
                "requests at once": f"{plan.max_concurrency:.1f} of {plan.max_model_len:,}",
                "tokens/s": evidence(found),
            }
        )
    return pd.DataFrame(rows)


def evidence(deployment: Deployment) -> str:
    """The measured tokens/s of a deployment's model in its layout, for one request and the most tried, and on what."""
    layout, table = label_of(deployment.tp, deployment.pp, deployment.dp), all_speeds()
    same = table["server"].str.removesuffix(SINGLE) == layout
    rows = table[(table["model"] == deployment.shape) & same].dropna(axis=1)
    if rows.empty:
        return "not measured"
    counts = [column for column in rows if isinstance(column, int)]
    values = [f"{rows[count].max():,.0f}" for count in (min(counts), max(counts))]
    place = "" if deployment.gpu == MEASURED_GPU else f", on {MEASURED_GPU}"
    return f"{values[0]} (1), {values[1]} ({max(counts)}){place}"


def reasons() -> Iterator[str]:
    """For each deployment its file's own words: why this layout, what was measured, what to mind."""
    yield "## Why so\n"
    names: dict[str, list[str]] = {}
    for name, found in catalogue().items():
        if found.shape:
            names.setdefault(reason(found.path), []).append(name)
    for words, those in names.items():
        yield f"**{', '.join(those)}.** {words}\n"


def reason(path: Path) -> str:
    """The paragraph of a deployment's header that begins with `Why:`."""
    found = re.search(r"^# Why: (.*?)\n#\n", path.read_text(), re.MULTILINE | re.DOTALL)
    words = " ".join(found[1].replace("\n# ", " ").split()) if found else ""
    return re.sub(r'(\b[A-Z]\w*="[^"]*"|--[a-z][\w-]+(?:=\w+)?|\b[A-Z_]+=\w+)', r"`\1`", words[:1].upper() + words[1:])


@cache
def all_speeds() -> pd.DataFrame:
    """Tokens/s of every measured server, a column for each number of requests at once: model, gpus, server, 1, 16, …"""
    columns = ["model", "gpus", "row", "concurrency", "tokens_per_second"]
    tables = [parallel_data.two_gpus().assign(gpus=2), parallel_data.four_repeated().assign(gpus=4)]
    rows = pd.concat([table[columns] for table in tables])
    rows.loc[rows["row"].str.startswith("TP1"), "gpus"] = 1
    others = [
        {"model": model, "gpus": gpus, "row": layout, "concurrency": one["max_concurrency"],
         "tokens_per_second": one["output_throughput"]}
        for run, (model, layout, gpus) in OTHERS.items() for one in measured()["throughput"] if one["run"] == run
    ]  # fmt: skip
    single = pd.concat([parallel_data.four_gpus().assign(gpus=4)[columns], pd.DataFrame(others)], ignore_index=True)
    known = set(zip(rows["model"], rows["row"], strict=True))
    new = [pair not in known for pair in zip(single["model"], single["row"], strict=True)]
    rows = pd.concat([rows, single[new].assign(row=lambda found: found["row"] + SINGLE)])
    wide = rows.pivot_table(
        index=["model", "gpus", "row"], columns="concurrency", values="tokens_per_second"
    ).reset_index()
    return wide.rename(columns={"row": "server"})


def speeds() -> pd.DataFrame:
    """all_speeds as words, the fastest server of each model first."""
    table = all_speeds().sort_values(["model", "gpus", 1], ascending=[True, True, False])
    counts = [column for column in table if isinstance(column, int)]
    table[counts] = table[counts].map(lambda value: "–" if pd.isna(value) else f"{value:,.0f}")
    return table.rename(columns={"gpus": f"{MEASURED_GPU}s"} | {n: f"{n} at once" for n in counts})


def rooms() -> pd.DataFrame:
    """Tokens of cache of the servers of helpers/data/h200_kv.json, printed and foreseen."""
    rows = []
    for run in measured_memory()["runs"].values():
        flags, printed = run["flags"], figures("\n".join(run["lines"]))["kv_cache_tokens"]
        plan = memory.plan(load(run["model"]), gpu=MEASURED_GPU, **flags)
        names = [f"{name.replace('_', ' ')} {value}" for name, value in flags.items() if name not in ("tp", "pp")]
        rows.append(
            {
                "model": run["model"],
                "layout": label_of(plan.tp, plan.pp, plan.dp),
                "settings": ", ".join(names),
                "printed": f"{printed:,}",
                "foreseen": f"{plan.kv_cache_tokens:,}",
                "off by": f"{plan.kv_cache_tokens / printed - 1:+.1%}",
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A DataFrame of words as a Markdown table; columns that begin with a digit stand to the right."""
    right = [all(str(value)[:1].isdigit() or str(value)[:1] in "+-–" for value in table[name]) for name in table]
    lines = [" | ".join(map(str, table.columns)), " | ".join("---:" if is_right else "---" for is_right in right)]
    lines += [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when the page is right (or has been written), 1 when it is stale."""
    today = page()
    if "--write" in (sys.argv[1:] if arguments is None else arguments):
        PAGE.write_text(today)
    elif not PAGE.exists() or PAGE.read_text() != today:
        print("slurm/MODELS.md is stale: python -m helpers.models_page --write renews it.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
