"""Pictures of a server's metrics: one of a recording, and one that keeps up with the server."""

import base64
import html
import math
import threading
import time
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from openai import OpenAI

from helpers import plots
from helpers.errors import WorkshopError
from helpers.gpu_load import GpuLoad
from helpers.metrics import MetricsError, Recording, rates
from helpers.widgets import png

COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.RED, plots.GREY)
STYLES = ("-", "--", ":", "-.")  # beside the colours, for those who do not see them

_newest: "LiveView | None" = None


def summary(recording: Recording, whole: bool = False) -> dict[str, str]:
    """What to say above each panel: of the last moment, or of the whole recording its peaks and means.

    Prefix hits and preemptions are always those of the whole recording.
    """
    first, now = recording.snapshots[0], recording.snapshots[-1]
    shots, most = (recording.snapshots, "at most ") if whole else ([now], "")
    fullest = max(shots, key=lambda shot: shot.kv_usage)
    said = {
        "requests": f"requests: {most}{max(s.running for s in shots)} running, {max(s.waiting for s in shots)} waiting",
        "cache": f"KV cache: {most}{fullest.kv_usage:.0%}",
        "tokens": "tokens/s",
        "prefix": "prefix cache",
    }
    if now.kv_blocks:
        said["cache"] += f", {fullest.blocks_used:,} of {now.kv_blocks:,} blocks"
    if first is not now:
        overall = rates(first, now)
        speed = overall if whole else rates(recording.snapshots[-2], now)
        prompt, generated = speed.prompt_tokens_per_second, speed.generation_tokens_per_second
        said["tokens"] += f": {'on average ' if whole else ''}{generated:,.0f} generated, {prompt:,.0f} of prompts"
        said["prefix"] += (
            ": no prompts" if math.isnan(overall.prefix_hit_rate) else f": {overall.prefix_hit_rate:.0%} hits"
        )
        said["requests"] += f", {overall.preemptions} preempted" if overall.preemptions else ""
    return said | _of_gpus(recording.gpus if whole else recording.gpus[-1:], most)


def _of_gpus(loads: list[list[GpuLoad]], most: str) -> dict[str, str]:
    if not loads[-1]:
        return {}
    busiest = [max(load.utilisation for load in one) for one in zip(*loads, strict=False)]
    fullest = [max(load.used_gib for load in one) for one in zip(*loads, strict=False)]
    return {
        "gpus": f"GPU at work: {most}" + ", ".join(f"{share:.0%}" for share in busiest),
        "memory": f"GPU memory: {most}{', '.join(f'{gib:.0f}' for gib in fullest)} of {loads[-1][0].total_gib:.0f} GiB",
    }


class Panels:
    """A figure of small panels, one idea each, which draws a recording anew whenever it is asked to."""

    def __init__(self, gpus: list[int]):
        rows = 3 if gpus else 2
        # A constrained layout would double the time of a drawing.
        with plt.rc_context(plots.STYLE | {"figure.constrained_layout.use": False}):
            self.figure = Figure(figsize=(7.6, 1.75 * rows))
            axes = self.figure.subplots(rows, 2, sharex=True)
        margin = 0.3 / rows  # of the height: titles and the seconds take the same room whatever the rows
        self.figure.subplots_adjust(0.065, 0.9 * margin, 0.985, 1 - 0.55 * margin, wspace=0.17, hspace=0.3)
        self._axes: dict[str, Axes] = dict(
            zip(("requests", "cache", "tokens", "prefix", "gpus", "memory"), axes.flat, strict=False)
        )
        self._lines: dict[str, Line2D] = {}
        self._add("requests", {"running": "running", "waiting": "waiting"})
        self._add("cache", {"kv_usage": ""}, share=True)
        self._add("tokens", {"generation_tokens_per_second": "generated", "prompt_tokens_per_second": "of prompts"})
        self._add("prefix", {"prefix_hit_rate": ""}, share=True, marker=".")
        if gpus:
            self._add("gpus", {f"gpu_{i}": f"GPU {i}" for i in gpus}, share=True)
            self._add("memory", {f"gpu_{i}_gib": f"GPU {i}" for i in gpus})
        for axis in axes[-1]:
            axis.set_xlabel("seconds", fontsize=9)

    def _add(self, panel: str, columns: dict[str, str], share: bool = False, marker: str = "") -> None:
        axis = self._axes[panel]
        for i, (column, label) in enumerate(columns.items()):
            color, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            (self._lines[column],) = axis.plot(
                [], [], linewidth=1.5, color=color, linestyle=style, marker=marker, label=label
            )
        axis.tick_params(labelsize=8)
        if len(columns) > 1:
            axis.legend(loc="upper left", ncols=2, fontsize=8, frameon=False, borderpad=0)
        if share:
            axis.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1], yticklabels=["0", "50%", "100%"])
        else:
            axis.set_ylim(0, 1)
            axis.locator_params("y", integer=True, nbins=4)
            axis.yaxis.set_major_formatter("{x:,.0f}")

    def draw(self, recording: Recording, said: dict[str, str]) -> Figure:
        """The figure with all of this recording in it, and what `summary` said above the panels."""
        frame = recording.frame
        for column in frame.columns.intersection(list(self._lines)):
            self._lines[column].set_data(frame.index, frame[column])
        for panel, axis in self._axes.items():
            axis.set_title(said.get(panel, ""), loc="left", fontsize=9)
            if axis.get_ylim()[0] == 0:  # not a share, which keeps its scale
                highest = max(float(np.nanmax(np.append(line.get_ydata(), 0))) for line in axis.get_lines())
                axis.set_ylim(0, max(1.0, 1.35 * highest))  # with room for the legend
        next(iter(self._axes.values())).set_xlim(0, max(frame.index[-1], 1))
        return self.figure


def history(recording: Recording) -> Figure:
    """A still of a whole recording: requests, cache, tokens a second and prefix hits over time, and GPUs where seen.

    Raises MetricsError for a recording with nothing in it.
    """
    if not recording.snapshots:
        raise MetricsError("The recording is empty; record while something runs.")
    return Panels(recording.gpus_seen).draw(recording, summary(recording, whole=True))


class LiveView(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The last minute of a server, redrawn in the background; see `watch`. `recording` is what it shows."""

    def __init__(self, client: OpenAI, interval: float, window: float, minutes: float):
        if not 0 < interval <= window or minutes <= 0:
            raise MetricsError(f"An interval of {interval} s and a window of {window} s leave nothing to see.")
        self._client, self._interval, self._window = client, interval, window
        self._until, self._over = time.monotonic() + 60 * minutes, threading.Event()
        self._handle: DisplayHandle | None = None
        self.recording, self._redraw_at = Recording(), 0.0
        self.recording.take(client)
        self._panels = Panels(self.recording.gpus_seen)
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "730px"})
        self._text = ipywidgets.HTML(layout={"max_width": "730px"})
        self._stop = ipywidgets.Button(description="Stop", tooltip="end the updates; the picture stays")
        self._stop.on_click(lambda _: self.stop())
        super().__init__([self._picture, self._text, self._stop])
        self._show()
        _retire_older(self)
        self._thread = threading.Thread(target=self._follow, daemon=True, name="metrics-watch")
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Whether it still keeps up with the server."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the updates, with a last look at the server if it still answers."""
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(30)

    def __enter__(self) -> "LiveView":
        display(self)  # type: ignore[no-untyped-call]  # IPython's, without types
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _follow(self) -> None:
        """Look every interval, and once more at the end."""
        problem = ""
        while not problem and not self._over.wait(self._interval):
            problem = self._look()
            if time.monotonic() > self._until:
                problem = "Ended, for its time was up; run the cell again to go on."
        problem = problem or self._look()
        self._stop.disabled = True
        self._text.value = self._page(problem or "Stopped.")
        self._draw()
        if self._handle:
            # The notebook is saved with this. Without a widget any page can show it; a problem needs the widget's text.
            shown = self._bundle() if problem else self._still()
            self._handle.update(shown, raw=True)  # type: ignore[no-untyped-call]

    def _look(self) -> str:
        """Read and show the server as it is now; the sentence that says why, where that fails."""
        try:
            self.recording.take(self._client)
            self.recording.keep(self._window)
            self._show()
        except Exception as error:  # nobody else would hear of it
            return str(error) if isinstance(error, WorkshopError) else f"{type(error).__name__}: {error}"
        return ""

    def _show(self) -> None:
        """The figures at once; the picture only so often that drawing takes a tenth of the time, or every 5 s."""
        self._text.value = self._page()
        if (began := time.monotonic()) >= self._redraw_at:
            self._draw()
            self._redraw_at = time.monotonic() + min(9 * (time.monotonic() - began), 5)

    def _draw(self) -> None:
        self._picture.value = png(self._panels.draw(self.recording, summary(self.recording)))

    def _page(self, ending: str = "") -> str:
        said = "; ".join(summary(self.recording).values())
        ending = f" <b>{html.escape(ending)}</b>" if ending else ""
        return f'<div style="line-height:1.4">{html.escape(said)}.{ending}</div>'

    def _still(self) -> dict[str, str]:
        said = "; ".join(summary(self.recording).values())
        return {"text/plain": said, "image/png": base64.b64encode(self._picture.value).decode()}

    def _bundle(self) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(), **self._still()}

    def _ipython_display_(self, **_: object) -> None:
        self._handle = display(self._bundle(), raw=True, display_id=True)  # type: ignore[no-untyped-call]


def _retire_older(view: LiveView) -> None:
    global _newest
    if _newest is not None:
        _newest._over.set()
    _newest = view


def watch(client: OpenAI, *, interval: float = 1.0, window: float = 60.0, minutes: float = 30.0) -> LiveView:
    """A view of the server that keeps up with it while the notebook goes on; `window` is the seconds it shows.

        metrics_view.watch(client)                  until its cell is run again, Stop, the kernel's end, or `minutes`
        with metrics_view.watch(client): ...        while the block runs

    Pages without a kernel show its last picture. Raises what metrics.read raises, and MetricsError for a
    window shorter than the interval.
    """
    return LiveView(client, interval, window, minutes)
