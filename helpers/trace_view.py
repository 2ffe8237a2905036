"""The interactive picture of a trace: scrub through its steps, point at a block to see whose it is.

It is one HTML output with its data and its script inside, so it works wherever scripts of outputs run: in JupyterLab (a
notebook that was run or is trusted), in the page that nbconvert exports, with neither kernel nor network. An anywidget
would need the kernel to start, and in an exported page the widget manager and anywidget from a CDN. Where scripts do
not run, the still picture stands in its place.
"""

import base64
import hashlib
import html
import io
import json
from pathlib import Path

from helpers.trace import Trace
from helpers.trace_plots import trace_figure
from helpers.trace_scene import scene

SCRIPT = Path(__file__).with_name("static") / "trace_view.js"

# JupyterLab may run the script before it has put the output into the page, so it looks for a while.
STARTER = """
(function look(times) {
  const roots = document.querySelectorAll('[data-trace="%(name)s"]:not([data-drawn])');
  roots.forEach(root => traceView(root, scene));
  if (!roots.length && times) setTimeout(() => look(times - 1), 100);
})(100);
"""


class TraceView:
    """Shows a trace as the output of a cell. `title` stands above the still picture and names the interactive one."""

    def __init__(self, trace: Trace, title: str = ""):
        self.trace, self.title = trace, title
        self._scene = scene(trace)  # here, so that a trace too large to draw fails where it is made

    def html(self) -> str:
        """The picture as HTML that needs no other file; the still one is inside."""
        data = json.dumps(self._scene, separators=(",", ":")).replace("</", "<\\/")
        name = hashlib.sha256((self.title + data).encode()).hexdigest()[:12]
        alt = html.escape(f"{self.title}: {self._scene['summary']}" if self.title else self._scene["summary"])
        heading = f"<b>{html.escape(self.title)}</b>" if self.title else ""
        script = f"(() => {{\n{SCRIPT.read_text()}\nconst scene = {data};{STARTER % {'name': name}}}})();"
        return (
            f'<figure style="margin:0">{heading}'
            f'<div data-trace="{name}" role="group" aria-label="{alt}">'
            f'<img alt="{alt}" src="data:image/png;base64,{self._still()}" style="max-width:100%"></div>'
            f"<figcaption>{html.escape(self._scene['summary'])}</figcaption></figure>"
            f"<script>{script}</script>"
        )

    def _still(self) -> str:
        buffer = io.BytesIO()
        trace_figure(self.trace).savefig(buffer, format="png")
        return base64.b64encode(buffer.getvalue()).decode()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": self._scene["summary"], "text/html": self.html()}
