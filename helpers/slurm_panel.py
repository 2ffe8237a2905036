"""A panel for notebooks: choose a deployment, submit it, and watch it get ready."""

import html
import threading
from collections.abc import Callable
from typing import Any, Unpack

import ipywidgets

from helpers import deployments, jobs, sites, slurm
from helpers.deployments import Deployment
from helpers.environment import MARKS, OK, PROBLEM, Finding
from helpers.errors import WorkshopError
from helpers.jobs import PHASES, Job, Status

#: phase -> how full the bar is, in per cent; loading fills what lies between its own and the next one's
FILLED = {
    jobs.PENDING: 0,
    jobs.STARTING: 5,
    jobs.LOADING: 10,
    jobs.WARMING_UP: 80,
    jobs.READY: 100,
    jobs.DRAINING: 100,
    jobs.FINISHED: 100,
    jobs.CANCELLED: 0,
    jobs.FAILED: 100,
}
STYLES = {jobs.READY: "success", jobs.FINISHED: "success", jobs.FAILED: "danger", jobs.DRAINING: "warning"}
LOG_LINES = 25

_newest: "SlurmPanel | None" = None


class SlurmPanel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Submits a deployment and follows its job in the background; `settings` are those of `helpers.slurm.prepare`.

    A panel that is opened while one of your deployments is queued or runs follows that one. Only the newest panel is
    kept up to date: running the cell again, or ending the kernel, ends the older one's thread.
    """

    def __init__(self, **settings: Unpack[slurm.Settings]):
        self.job: Job | None = None
        self.settings, self._generation, self._said = settings, 0, ""
        self._make_widgets()
        super().__init__([self._controls, self._bar, self._text, self._details, self._log])
        _retire_older(self)
        self._do(self._attach)

    def _make_widgets(self) -> None:
        site = sites.read_site(self.settings.get("site"))
        self._shelf = {deployment.name: deployment for deployment in slurm.deployments(self.settings.get("site"))}
        named = [(f"{name}: {_size(deployment)}", name) for name, deployment in self._shelf.items()]
        self._choice = ipywidgets.Dropdown(options=named, description="deployment", layout={"width": "28em"})
        self._choice.tooltip = "from the keyboard: Space opens the list"
        small = bool(self.settings.get("small", site.is_small))
        self._small = ipywidgets.Checkbox(
            small, description="the small Llama in its place", indent=False, layout={"width": "auto"}
        )
        self._submit = ipywidgets.Button(description="Submit", button_style="primary", tooltip="check it, then sbatch")
        self._cancel = ipywidgets.Button(description="Cancel", disabled=True, tooltip="end the job that is shown")
        self._show_log = ipywidgets.ToggleButton(description="Show log", disabled=True, tooltip="the end of its log")
        self._controls = ipywidgets.HBox(
            [self._choice, self._small, self._submit, self._cancel, self._show_log], layout={"flex_flow": "row wrap"}
        )
        self._choice.style.description_width = "initial"
        self._bar = ipywidgets.IntProgress(0, min=0, max=100, layout={"width": "28em"})
        self._text, self._details, self._log = (ipywidgets.HTML() for _ in range(3))
        self._submit.on_click(lambda _: self._do(self._submit_and_follow))
        self._cancel.on_click(lambda _: self._do(self._cancel_and_tell))
        self._show_log.observe(lambda _: self._refresh_log(), names="value")
        self._say("Nothing submitted yet.")

    # --- in the background: each action has a thread, and the one before ends

    def _do(self, action: Callable[[Callable[[], bool]], None]) -> None:
        """Run an action that may take long; it gets a function that says whether it is still wanted."""
        self._generation += 1
        mine = self._generation

        def run() -> None:
            try:
                action(lambda: self._generation == mine)
            except Exception as error:  # nobody else would hear of it
                if self._generation == mine:
                    told = str(error) if isinstance(error, WorkshopError) else f"{type(error).__name__}: {error}"
                    self._say(html.escape(told))
                    self._submit.disabled = False

        self._thread = threading.Thread(target=run, daemon=True, name="slurm-panel")
        self._thread.start()

    def retire(self) -> None:
        """Stop following."""
        self._generation += 1

    def _attach(self, wanted: Callable[[], bool]) -> None:
        slurm.need_slurm()
        active = [record for record in jobs.mine() if not record.is_over]
        if active and wanted():
            self.job = jobs.handle(active[0])
            self._follow(wanted)

    def _submit_and_follow(self, wanted: Callable[[], bool]) -> None:
        self._submit.disabled, self._details.value = True, ""
        self._fill(0, "")
        self._say(f"Checking {html.escape(self._choice.value)} …")
        settings: slurm.Settings = {**self.settings, "small": self._small.value}
        submission = slurm.prepare(self._choice.value, **settings)
        slurm.need_slurm()
        findings = slurm.preflight(submission)
        self._details.value = _findings(findings)
        if any(finding.state == PROBLEM for finding in findings):
            self._say(f"Not submitted: {html.escape(self._choice.value)} would fail.")
            self._submit.disabled = False
            return
        self.job = slurm.send(submission)
        self._follow(wanted)

    def _cancel_and_tell(self, wanted: Callable[[], bool]) -> None:
        self._cancel.disabled = True
        self._say(f"Cancelling {html.escape(str(self.job))} …")
        status = slurm.cancel(self.job)
        if wanted():
            self._show(status)

    def _follow(self, wanted: Callable[[], bool]) -> None:
        for number, status in enumerate(slurm.watch(self.job)):
            if not wanted():
                return
            self._show(status)
            if number % 4 == 0:  # every 2 s
                self._refresh_log()

    # --- what is seen; a widget is touched only when something changed, for each touch is a message to the browser

    def _show(self, status: Status) -> None:
        filled = FILLED[status.phase] + (status.percent or 0) * (FILLED[jobs.WARMING_UP] - FILLED[jobs.LOADING]) // 100
        self._fill(filled, STYLES.get(status.phase, "info"))
        self._say(_steps(status) + html.escape(str(status)[0].upper() + str(status)[1:]))
        self._submit.disabled = False
        self._cancel.disabled, self._show_log.disabled = status.is_over, status.phase == jobs.PENDING

    def _fill(self, filled: int, style: str) -> None:
        self._bar.value, self._bar.bar_style = filled, style

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._text.value = f'<div role="status" aria-live="polite">{text}</div>'

    def _refresh_log(self) -> None:
        shown = ""
        if self._show_log.value and self.job:
            try:
                shown = _log(self.job)
            except WorkshopError as error:
                shown = html.escape(str(error))
        if shown != self._log.value:
            self._log.value = shown

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": "A panel that submits a deployment to Slurm.", "text/html": self._page()}

    def _page(self) -> str:
        """What a page without a kernel shows: the deployments, and the command that does what the panel does."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(d.title)}</td><td>{html.escape(_size(d))}</td></tr>"
            for name, d in deployments.catalogue().items()  # the same on every site
        )
        head = "<tr><th>deployment</th><th></th><th>GPUs</th></tr>"
        return (
            f"<table>{head}{rows}</table><p>Run this cell to submit one of them and follow it, or in a terminal: "
            "<code>python -m helpers.slurm submit NAME</code></p>"
        )


def _retire_older(panel: SlurmPanel) -> None:
    global _newest
    if _newest is not None:
        _newest.retire()
    _newest = panel


def _size(deployment: Deployment) -> str:
    nodes = f" on each of {deployment.nodes} nodes" if deployment.nodes > 1 else ""
    return f"{deployment.gpus_per_node} {deployment.gpu or 'GPU'}{nodes}"


def _steps(status: Status) -> str:
    """pending › starting › loading weights 40% › ..., with the present one in bold; nothing for a job off this path."""
    if status.phase not in PHASES:
        return ""
    percent = "" if status.percent is None else f" {status.percent}%"
    words = [f"<b>{phase}{percent}</b>" if phase == status.phase else phase for phase in PHASES]
    return f"<div>{' › '.join(words)}</div>"


def _findings(findings: list[Finding]) -> str:
    """What a person should read before waiting: problems first, then notes; what is well is only counted."""
    worth = sorted((f for f in findings if f.state != OK), key=lambda finding: finding.state != PROBLEM)
    rows = "".join(
        f"<li>{MARKS[f.state]} {html.escape(f.what)}: {html.escape(f.found)}"
        + (f" → {html.escape(f.mend)}" if f.mend else "") + "</li>"
        for f in worth
    )  # fmt: skip
    well = sum(finding.state == OK for finding in findings)
    return f"<div>{well} of {len(findings)} checks passed.</div>" + (
        f"<ul style='list-style:none'>{rows}</ul>" if rows else ""
    )


def _log(job: Job) -> str:
    """The end of the first rank's log, or of Slurm's where no rank has begun."""
    try:
        path, text = jobs.read_log(job, rank=0)
    except WorkshopError:
        path, text = jobs.read_log(job)
    lines = "\n".join(text.splitlines()[-LOG_LINES:])
    return f"<pre style='font-size:small;white-space:pre-wrap'>{html.escape(lines)}</pre><div>{html.escape(str(path))}</div>"
