"""Results on one page: what was measured and how, the pictures, the figures, and which server to choose for what."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from helpers import bench_plots
from helpers.bench_report import heading, table, title
from helpers.bench_store import Results, read_all
from helpers.errors import WorkshopError

STYLE = """
@page { size: A4; margin: 12mm }
body { font: 10.5pt/1.35 system-ui, sans-serif; max-width: 186mm; margin: 1em auto; padding: 0 1em; color: #202124 }
h1 { font-size: 15pt; margin: 0 0 .2em } h2 { font-size: 11.5pt; margin: .9em 0 .3em } p { margin: .3em 0 }
img { max-width: 100%; max-height: 82mm } ul { margin: .3em 0; padding-left: 1.3em }
table { border-collapse: collapse; font-size: 9.5pt } td, th { padding: 1px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid #dadce0 }
td:first-child, th:first-child { text-align: left } .small { font-size: 8.5pt; color: #5f6368; white-space: pre-line }
"""


SAME = ["model", "input_len", "output_len"]


class PageError(WorkshopError):
    """Results of which no page can be made."""


@dataclass(frozen=True)
class Limits:
    """What users shall not wait longer for, in ms: the first token, and each token after it (both medians)."""

    ttft_ms: float = 1000.0
    tpot_ms: float = 50.0

    def __str__(self) -> str:
        return f"a first token within {self.ttft_ms:g} ms and {self.tpot_ms:g} ms for each after it"


def write(folder: Path, page: Path, limits: Limits | None = None) -> list[str]:
    """Write the results of a folder, or of one file of it, as one HTML file that needs no other. Returns its answers, a line each.

    Raises StoreError when there are none, PageError when they are of several machines or hold no measurement.
    """
    found = read_all(folder)
    if len(found) > 1:
        files = ", ".join(str(results.path) for results in found)
        raise PageError(f"These are results of {len(found)} machines, which do not compare. Name one of: {files}.")
    measured = table(found[0])
    if measured.empty:
        raise PageError(
            f"{found[0].path} holds no measurement. Run the matrix again: {_failures(found[0]) or 'it is empty'}"
        )
    answers = {title(*key): choices(group, limits or Limits()) for key, group in measured.groupby(SAME, sort=False)}
    page.write_text(_page(found[0], measured, answers))
    return [
        line for key, said in answers.items() for line in [key, *(f"  {what}: {how}" for what, how in said.items())]
    ]


def choices(measured: pd.DataFrame, limits: Limits) -> dict[str, str]:
    """Question -> answer in words, from rows of helpers.bench_report.table of one model and one pair of lengths."""
    least = measured["concurrency"].min()
    alone = _fastest(measured[measured["concurrency"] == least])
    best = _fastest(measured)
    good = measured[(measured["ttft_ms"] <= limits.ttft_ms) & (measured["tpot_ms"] <= limits.tpot_ms)]
    within = (
        _words(_fastest(good)) if len(good) else "none of these servers, with any number of requests that was measured"
    )
    return {
        f"For {'one request at a time' if least == 1 else f'{least} requests at once'}": _words(alone),
        "For most tokens a second": _words(best),
        f"For most tokens a second with {limits}": within,
    }


def _fastest(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[rows["tokens_per_second"].idxmax()]


def _words(row: pd.Series) -> str:
    at = f"with {row['concurrency']} at once"
    wait = f"first token after {row['ttft_ms']:,.0f} ms, then one every {row['tpot_ms']:.3g} ms"
    return f"{row['row']}: {row['tokens_per_second']:,.0f} tokens/s {at}; {wait}"


def _page(results: Results, measured: pd.DataFrame, answers: dict[str, dict[str, str]]) -> str:
    parts = [
        f"<h1>{html.escape(_what(results, measured))}</h1>",
        f'<p class="small">{html.escape(heading(results.machine))}</p>',
    ]
    for key, group in measured.groupby(SAME, sort=False):
        said = title(*key)
        parts.append(f"<h2>{html.escape(said)}</h2>")
        lines = (f"<li>{html.escape(what)}: <b>{html.escape(how)}</b></li>" for what, how in answers[said].items())
        parts.append(f"<ul>{''.join(lines)}</ul>")
        parts.append(_image(bench_plots.speeds(group, said)))
        if group["concurrency"].nunique() > 1:
            parts.append(_image(bench_plots.choice(group, said)))
        parts.append(_table(group))
    if results.failures:
        parts.append(f"<h2>Not measured</h2><p>{html.escape(_failures(results))}</p>")
    parts.append(f'<p class="small">{_how(results, measured)}</p>')
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark</title><style>{STYLE}</style>{"".join(parts)}</html>\n'


def _what(results: Results, measured: pd.DataFrame) -> str:
    gpus = results.machine["gpus"]
    models = ", ".join(Path(model).name for model in measured["model"].unique())
    return (
        f"{models} on {f'{len(gpus)} x {gpus[0]}' if gpus else 'a CPU'}: {measured['row'].nunique()} servers compared"
    )


def _table(group: pd.DataFrame) -> str:
    """A line for each server; for each number of requests the median with lowest to highest."""
    loads, rows = sorted(group["concurrency"].unique()), []
    for name, cells in group.groupby("row", sort=False):
        words = [html.escape(str(name))]
        for load in loads:
            cell = cells[cells["concurrency"] == load]
            spread = [f"{c.tokens_per_second:,.0f} ({c.lowest:,.0f}–{c.highest:,.0f})" for c in cell.itertuples()]
            words.append(spread[0] if spread else "–")
        rows.append("".join(f"<td>{word}</td>" for word in words))
    head = "".join(f"<th>{load} at once</th>" for load in loads)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><tr><th>tokens/s: median (lowest–highest)</th>{head}</tr>{lines}</table>"


def _image(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="{html.escape(str(figure.get_label()))}" src="data:image/png;base64,{data}"></p>'


def _failures(results: Results) -> str:
    return " ".join(f"{failure['row']}: {failure['said']}" for failure in results.failures)


def _how(results: Results, measured: pd.DataFrame) -> str:
    days = sorted({server["date"][:10] for server in results.servers})
    weights = ", ".join(measured["weights"].unique())
    fewest, most = measured["repeats"].min(), measured["repeats"].max()
    repeats = f"{most} repeats" if fewest == most else f"{fewest} to {most} repeats"
    return html.escape(
        f"vllm bench serve, random prompts and answers of fixed length, {repeats}, weights: {weights}; {' to '.join(dict.fromkeys((days[0], days[-1])))}. "
        "Prompts of other lengths give other figures."
    )
