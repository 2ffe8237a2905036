"""Interactive panels. Each also carries a picture or text of itself, so that it shows where no kernel runs."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from helpers import plots, sampling
from helpers.client import explain
from helpers.errors import WorkshopError
from helpers.hardware import GPUS
from helpers.memory import load, plan
from helpers.models import catalogue
from helpers.quantization import SCHEMES

AS_PUBLISHED = "as published"


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


class Explorer(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls above a picture; moving one redraws it.

    `draw(**values)` gets each control's value by name and returns a Figure. The picture of the first values is part of
    the cell's output as a PNG, for pages and viewers without a kernel.
    """

    def __init__(self, draw: Callable[..., Figure], title: str, **controls: ipywidgets.Widget):
        self._draw, self._controls, self._name = draw, controls, title
        self._picture = ipywidgets.Image(value=self._png(), format="png", layout={"max_width": "640px"})
        for control in controls.values():
            control.style.description_width = "initial"
        super().__init__([*controls.values(), self._picture])
        for control in controls.values():
            control.observe(self._redraw, names="value")

    def _png(self) -> bytes:
        return png(self._draw(**{name: control.value for name, control in self._controls.items()}))

    def _redraw(self, _: object) -> None:
        self._picture.value = self._png()

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": self._name, "image/png": base64.b64encode(self._picture.value).decode()}


def sampling_explorer(odds: dict[str, float], beginning: str) -> Explorer:
    """Sliders for temperature and top_k over the odds {token: probability} of what follows `beginning`."""

    def draw(temperature: float, top_k: int) -> Figure:
        after = sampling.keep_top_k(sampling.apply_temperature(odds, temperature), top_k)
        title = f"“{beginning} …” at temperature {temperature:g}" + (f", top_k {top_k}" if top_k else "")
        return plots.next_token_bars(after, odds, title)

    return Explorer(
        draw, f"Sliders: temperature and top_k for “{beginning} …”",
        temperature=ipywidgets.FloatSlider(1.0, min=0, max=3, step=0.1, description="temperature"),
        top_k=ipywidgets.IntSlider(0, min=0, max=len(odds), description="top_k (0: all)"),
    )  # fmt: skip


def memory_planner() -> Explorer:
    """Choose a model, a GPU, a layout and a length; see what fills a GPU and whether it fits.

    A layout that vLLM refuses, or a length the model does not read, shows the sentence that says so.
    """

    def draw(model: str, weights: str, gpu: str, tp: int, pp: int, max_model_len: int) -> Figure:
        try:
            config = load(model) if weights == AS_PUBLISHED else load(model).quantized(weights)
            if max_model_len > config.max_position_embeddings:
                return plots.sentence(f"{model} reads at most {config.max_position_embeddings:,} tokens.")
            planned = plan(config, gpu=gpu, tp=tp, pp=pp, max_model_len=max_model_len)
        except WorkshopError as error:
            return plots.sentence(str(error))
        return plots.plan_verdict(planned, planned.reason)

    lengths = [(f"{length:,}", length) for length in (2**power for power in range(10, 18))]
    return Explorer(
        draw, "Choose model, weights, GPU, TP, PP and length; the picture is the plan of the first choice.",
        model=ipywidgets.Dropdown(options=catalogue(), value="llama-3.1-70b", description="model"),
        weights=ipywidgets.Dropdown(options=[AS_PUBLISHED, *SCHEMES], description="weights"),
        gpu=ipywidgets.Dropdown(options=list(GPUS), value="H100", description="GPU"),
        tp=ipywidgets.SelectionSlider(options=[1, 2, 3, 4, 6, 7, 8, 16], value=4, description="TP"),
        pp=ipywidgets.SelectionSlider(options=[1, 2, 3, 4, 6, 7, 8, 16], value=1, description="PP"),
        max_model_len=ipywidgets.SelectionSlider(options=lengths, value=8192, description="max length"),
    )  # fmt: skip


class ChatPanel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A small chat: what you type is sent with the whole conversation so far, and the answer streams in.

    `messages` is the conversation as the server gets it. An error is shown as one sentence in place of the answer.
    """

    def __init__(self, client: OpenAI, model: str, first_question: str | None = None, **sampling_options: Any):
        self.client, self.model, self.options = client, model, sampling_options
        self.messages: list[ChatCompletionMessageParam] = []
        self._page = ipywidgets.HTML()
        self._line = ipywidgets.Text(placeholder="Ask about serving language models", continuous_update=False)
        self._send = ipywidgets.Button(description="Send", button_style="primary")
        super().__init__([self._page, ipywidgets.HBox([self._line, self._send])])
        self._line.observe(self._submit, names="value")  # comes with Enter
        self._send.on_click(self._submit)
        self._show()
        if first_question:
            self.ask(first_question)

    def ask(self, question: str) -> None:
        """Send one message and show the answer while it comes."""
        self.messages.append({"role": "user", "content": question})
        answer = ""
        try:
            stream = self.client.chat.completions.create(
                model=self.model, messages=self.messages, stream=True, **self.options
            )
            for chunk in stream:
                answer += chunk.choices[0].delta.content or ""
                self._show(answer + "▌")
            self.messages.append({"role": "assistant", "content": answer})
        except Exception as error:
            self.messages.pop()
            self._show(explain(error))
        else:
            self._show()

    def _submit(self, _: object) -> None:
        question, self._line.value = self._line.value.strip(), ""
        if question:
            self.ask(question)

    def _show(self, coming: str = "") -> None:
        said = [(str(m["role"]), str(m["content"])) for m in self.messages] + [("assistant", coming)] * bool(coming)
        lines = [f"<p><b>{role}</b>: {html.escape(text)}</p>" for role, text in said]
        self._page.value = "".join(lines) or "<p><i>Nothing said yet.</i></p>"

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        said = "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)
        return {**bundle, "text/plain": said or "A chat panel.", "text/html": self._page.value}
