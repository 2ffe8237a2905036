"""The instructor's view of a class at work: its server, how far everybody is, who is stuck where, and a button to keep it."""

import html
import threading
import time
from pathlib import Path

import ipywidgets
import pandas as pd
from openai import OpenAI

from helpers import class_plots, class_progress, connections, progress_plots
from helpers.class_export import export
from helpers.class_progress import Participant, Reader, Stuck
from helpers.class_server import ServerHistory
from helpers.client import connect
from helpers.errors import WorkshopError
from helpers.progress import exercises
from helpers.progress_plots import Row
from helpers.widgets import png

WIDTH = {"max_width": "960px", "width": "100%"}
ALL = "all lessons"
SEEK = 30.0  # seconds between two looks for a server
STYLE = """<style>
.class-tiles {display:flex; flex-wrap:wrap; gap:8px; margin:4px 0}
.class-tiles div {border:1px solid #d7dbdf; border-radius:6px; padding:6px 12px; min-width:104px; line-height:1.3}
.class-tiles b {display:block; font-size:20px; font-weight:600}
.class-tiles span {font-size:12px; color:var(--jp-ui-font-color1, #333)}
.class-warning {border-left:4px solid #e08a2e; padding:2px 10px; margin:4px 0; line-height:1.4}
.class-stuck {columns:3 270px; font-size:13px; line-height:1.5; margin:4px 0; padding:0; list-style:none}
</style>"""
_newest: "Dashboard | None" = None


class Dashboard(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A panel that keeps up with a class, every `interval` seconds for so many `hours`.

    `folder` is the class's; by default the one that WORKSHOP_CLASS names. Who answered a check wrongly `tries` times, or has
    been at one for `minutes`, counts as stuck. Exported files go into `save_to`. `cost` is the kernel's CPU time for the
    last refresh, in seconds. It works without a server, or before anybody shares: what is missing is said where it would
    stand. Raises WorkshopError when no folder is known.
    """

    def __init__(
        self, folder: str | Path | None = None, *, interval: float = 5, tries: int = 3, minutes: float = 10,
        hours: float = 10, save_to: str | Path = ".",
    ):  # fmt: skip
        folder = Path(folder) if folder else connections.class_folder()
        if folder is None:
            raise WorkshopError(
                "Which class? Name its folder, Dashboard('/shared/workshop/class'), or set WORKSHOP_CLASS."
            )
        self.folder, self.server = folder, ServerHistory()
        self.participants: list[Participant] = []
        self.stuck: list[Stuck] = []
        self.cost, self._interval, self._save_to = 0.0, interval, Path(save_to).absolute()
        self._tries, self._minutes, self._until = tries, minutes, time.monotonic() + 3600 * hours
        self._reader, self._over, self._lock = Reader(folder / "progress"), threading.Event(), threading.Lock()
        self._client: OpenAI | None = None
        self._drawn: tuple[list[str], list[Row]] | None = None
        self._no_server, self._no_class, self._seek_at = "", "", 0.0
        self._build()
        self.refresh()
        _retire_older(self)
        self._thread = threading.Thread(target=self._follow, daemon=True, name="class-dashboard")
        self._thread.start()

    def _build(self) -> None:
        self._tiles, self._warned, self._stuck, self._said = (ipywidgets.HTML(layout=WIDTH) for _ in range(4))
        self._panels, self._grid = (ipywidgets.Image(format="png", layout=WIDTH) for _ in range(2))
        self._lesson = ipywidgets.Dropdown(options=[ALL, *exercises()], description="show", layout={"width": "190px"})
        self._lesson.observe(lambda _: self._redraw(), names="value")
        self._export = ipywidgets.Button(
            description="Export", icon="download", tooltip="write what the class has done to CSV and JSON"
        )
        self._export.on_click(lambda _: self.export())
        self._stop = ipywidgets.Button(description="Stop", tooltip="end the updates; what is shown stays")
        self._stop.on_click(lambda _: self.stop())
        self._told = ipywidgets.HTML()
        buttons = ipywidgets.HBox([self._lesson, self._export, self._stop, self._told])
        parts = [self._tiles, self._warned, self._panels, self._stuck, buttons, self._grid, self._said]
        super().__init__(parts)

    # --- looking

    def refresh(self) -> None:
        """Read server and progress, and show what has changed."""
        with self._lock:
            began = time.thread_time()
            self._look_at_server()
            self._look_at_class()
            self._show()
            self.cost = time.thread_time() - began
            self._said.value = self._footer()

    def _look_at_server(self) -> None:
        """Looking for a server asks Slurm, so that is not done at every refresh."""
        if self._client is None and time.monotonic() < self._seek_at:
            return
        self._no_server, self._seek_at = "", time.monotonic() + SEEK
        try:
            self._client = self._client or connect(quiet=True, wait=0)
            self.server.take(self._client)
        except WorkshopError as error:
            self._client, self._no_server = None, str(error)

    def _look_at_class(self) -> None:
        self._no_class = ""
        try:
            self.participants = self._reader.read()
        except WorkshopError as error:
            self.participants, self._no_class = [], str(error)
        now = time.time()
        self.stuck = class_progress.stuck(self.participants, now, tries=self._tries, minutes=self._minutes)

    def _follow(self) -> None:
        while not self._over.wait(self._interval) and time.monotonic() < self._until:
            try:
                self.refresh()
            except Exception as error:  # nobody else would hear of it
                self._told.value = html.escape(f"{type(error).__name__}: {error}")
        self._stop.disabled = True
        self._told.value = "Stopped; run the cell again to go on."

    @property
    def is_live(self) -> bool:
        """Whether it still keeps up."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the updates; what is shown stays."""
        self._over.set()

    def export(self) -> tuple[Path, Path] | None:
        """Write what the class has done into CSV and JSON; their paths, or None where that failed, which is told."""
        self._told.value = "…"
        try:
            made = export(self.participants, self.server.frame, self._save_to)
        except WorkshopError as error:
            self._told.value = f"<b>{html.escape(str(error))}</b>"
            return None
        self._told.value = f"Written: {html.escape(str(made[0]))} and {made[1].suffix}"
        return made

    # --- showing

    def _show(self) -> None:
        self._warned.value = self._warning()
        self._tiles.value = STYLE + tiles(self.server.frame, self.participants, self.stuck)
        if self.server.moments:
            self._panels.value = png(class_plots.server(self.server.frame))
        self._stuck.value = stuck_list(self.stuck)
        self._draw_grid()

    def _redraw(self) -> None:
        with self._lock:
            self._draw_grid()

    def _draw_grid(self) -> None:
        """The picture of all checks, when it would be another one."""
        columns = class_progress.checks("" if self._lesson.value == ALL else self._lesson.value)
        rows = class_progress.rows(self.participants, columns, {each.name: each.exercise for each in self.stuck})
        if (shown := (columns, rows)) != self._drawn:
            self._grid.value = png(progress_plots.class_grid(rows, columns))
            self._drawn = shown

    def _warning(self) -> str:
        """What is missing, and why."""
        lines = [problem for problem in (self._no_server, self._no_class) if problem]
        if self._reader.unreadable:
            lines.append(f"Left out, for they are no progress files: {', '.join(self._reader.unreadable)}.")
        return "".join(f'<p class="class-warning">{html.escape(line)}</p>' for line in lines)

    def _footer(self) -> str:
        return f"<small>{time.strftime('%H:%M:%S')}, refreshed in {self.cost:.2f} s of this kernel's time</small>"

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": "The class at work; run this cell to see it.", "text/html": self._tiles.value}


def tiles(server: pd.DataFrame, participants: list[Participant], stuck: list[Stuck]) -> str:
    """The figures to see at a glance, as HTML."""
    shown = []
    if len(server):
        last = server.iloc[-1]
        shown += [
            (f"{last.running:.0f}", "requests running"),
            (f"{last.waiting:.0f}", "waiting in the queue"),
            (f"{last.requests:,.0f}", "requests answered"),
            (f"{_short(last.prompt_tokens)} → {_short(last.generated_tokens)}", "tokens read → written"),
            (_seconds(last.ttft_median), "to the first token, median"),
            (f"{last.kv_usage:.0%}", "of the KV cache in use"),
        ]
    passed = sum(row.levels.count(3) for row in class_progress.rows(participants, class_progress.checks(), {}))
    shown += [
        (f"{class_progress.active(participants, time.time())} of {len(participants)}", "at a check in the last 10 min"),
        (f"{passed:,}", "checks passed"),
        (f"{len(stuck)}", "stuck"),
    ]
    return f'<div class="class-tiles">{"".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in shown)}</div>'


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{number:,.0f}"


def _seconds(value: float) -> str:
    return "–" if pd.isna(value) else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def stuck_list(stuck: list[Stuck], most: int = 12) -> str:
    """Who is stuck where, the longest first, as HTML."""
    if not stuck:
        return "<p>Nobody is stuck.</p>"
    lines = [
        f"<b>{html.escape(each.name)}</b>{html.escape(str(each).removeprefix(each.name))}" for each in stuck[:most]
    ]
    lines += [f"and {len(stuck) - most} more"] if len(stuck) > most else []
    return f'<ul class="class-stuck">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _retire_older(dashboard: Dashboard) -> None:
    global _newest
    if _newest is not None:
        _newest.stop()
    _newest = dashboard
