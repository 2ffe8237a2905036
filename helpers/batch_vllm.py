"""vLLM in this process, without a server, as the engine of a batch."""

import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.batch_answers import body_of
from helpers.batch_files import CHAT, LineError, Request, check_fields
from helpers.batch_job import StoppedError
from helpers.batch_output import Answer
from helpers.errors import WorkshopError
from helpers.keeper import ENVIRONMENT, ONE_RANK, SET_PDEATHSIG, prctl
from helpers.tiny import MODEL_DIR, MODEL_NAME

if TYPE_CHECKING:
    import vllm

#: Fields that take more of a server than an engine: a parser, a beam search, another form of answer.
ONLY_A_SERVER = {
    "tools", "echo", "suffix", "use_beam_search", "prompt_embeds", "prompt_logprobs", "logprob_token_ids",
    "return_token_ids", "return_tokens_as_token_ids", "return_prompt_text", "kv_transfer_params", "ec_transfer_params",
}  # fmt: skip
SMALL_MODEL_FLAGS = ["--served-model-name", MODEL_NAME, "--max-model-len", "2048", "--enforce-eager"]
DEAD = "vLLM's engine has died; its messages above say why."


class EngineError(WorkshopError):
    """An engine that cannot be started."""


class InProcess:
    """vllm.LLM, fed request by request as others finish, so that its batch is always full.

    Chat templates, defaults and limits are those of vLLM's server: a request becomes a prompt and SamplingParams by the
    same classes. What takes a server's parsers (ONLY_A_SERVER) is refused line by line.
    """

    def __init__(self, llm: "vllm.LLM", flags: Sequence[str] = ()):
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        config = llm.llm_engine.vllm_config
        names = config.model_config.served_model_name
        self.llm, self.engine, self.flags, self._dead = llm, llm.llm_engine, list(flags), EngineDeadError
        self.model: str = names[0] if isinstance(names, list) else names or config.model_config.model
        self.room = 2 * config.scheduler_config.max_num_seqs  # as many waiting as running: none of the seats gets cold
        self._seed = config.model_config.seed
        self._asked: dict[str, tuple[Request, Any]] = {}  # what vLLM has, by its request_id
        self._defaults = config.model_config.get_diff_sampling_param()  # what the model's generation_config.json says
        self._types: dict[bool, type[ChatCompletionRequest | CompletionRequest]] = {
            True: ChatCompletionRequest,
            False: CompletionRequest,
        }
        self._known = {chat: frozenset(kind.model_fields) for chat, kind in self._types.items()}

    @classmethod
    def start(cls, model: Path | str = MODEL_DIR, flags: Sequence[str] = ()) -> "InProcess":
        """Load a model with flags of `vllm serve`. Raises EngineError with what vLLM says."""
        prepare(model)
        from dataclasses import fields

        from vllm import LLM, EngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        ours = SMALL_MODEL_FLAGS if Path(model).resolve() == MODEL_DIR else ["--served-model-name", Path(model).name]
        parser = FlexibleArgumentParser(prog="flags of vLLM")  # type: ignore[no-untyped-call]  # has no types
        parser = EngineArgs.add_cli_args(parser)
        parsed = parser.parse_args(["--model", str(model), *ours, *flags])
        try:
            given, usual = EngineArgs.from_cli_args(parsed), EngineArgs(model=str(model))
            names = [field.name for field in fields(EngineArgs)]
            changed = {name: getattr(given, name) for name in names if getattr(given, name) != getattr(usual, name)}
            return cls(LLM(**{"model": str(model), **changed}), flags)
        except WorkshopError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM does not start with {model}: {error} Its messages above say more.") from error

    def describe(self) -> dict[str, Any]:
        """For the manifest: vLLM's flags, the engine's seed, and versions."""
        return {"engine": "in process", "flags": self.flags, "seed": self._seed, "versions": _versions()}

    def submit(self, request: Request) -> None:
        """Hand a request to the engine. Raises LineError when vLLM refuses it, StoppedError when the engine has died."""
        chat = request.url == CHAT
        check_fields(request.body, self._known[chat])
        if beyond := sorted(name for name in ONLY_A_SERVER if request.body.get(name)):
            raise LineError(
                "needs_server", f"{', '.join(beyond)}: only a server does that; run the batch with --server"
            )
        if request.body.get("model", self.model) != self.model:
            raise LineError("wrong_model", f"it asks {request.body['model']!r}, and this is {self.model!r}")
        try:
            asked = self._types[chat].model_validate(request.body)
            prompt = self._render_chat(asked) if chat else self._render(asked)
            params = asked.to_sampling_params(self._max_tokens(asked, prompt), self._defaults)
            self.engine.add_request(str(request.line), prompt, params, priority=asked.priority)
        except self._dead:
            raise StoppedError(DEAD) from None
        except LineError:
            raise
        except Exception as error:  # pydantic, the chat template, the tokenizer and vLLM all have their own
            raise LineError("invalid_request", _in_one_line(error)) from None
        self._asked[str(request.line)] = request, asked

    def _render_chat(self, asked: Any) -> Any:
        from vllm.utils.mistral import is_mistral_tokenizer

        template = asked.build_chat_params(getattr(self.llm, "chat_template", None), "auto")
        template = template.with_defaults(
            {"tools": None, "tokenize": is_mistral_tokenizer(self.llm.renderer.tokenizer)}
        )
        _, prompts = self.llm.renderer.render_chat(
            [asked.messages], template, asked.build_tok_params(self.llm.model_config)
        )
        return prompts[0]

    def _render(self, asked: Any) -> Any:
        from vllm.renderers.inputs.preprocess import parse_model_prompt, prompt_to_seq

        prompts = [parse_model_prompt(self.llm.model_config, prompt) for prompt in prompt_to_seq(asked.prompt)]
        if len(prompts) != 1:
            raise LineError("needs_server", f"{len(prompts)} prompts in one request; give each a line of its own")
        return self.llm.renderer.render_cmpl(prompts, asked.build_tok_params(self.llm.model_config))[0]

    def _max_tokens(self, asked: Any, prompt: Any) -> int:
        from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

        wanted = getattr(asked, "max_completion_tokens", None)
        wanted = asked.max_tokens if wanted is None else wanted
        length = self.llm.model_config.max_model_len
        return get_max_tokens(length, wanted, len(prompt["prompt_token_ids"]), self._defaults)

    def finished(self) -> list[Answer | LineError]:
        """One step of the engine, and those that it finished. Raises StoppedError when the engine has died."""
        from vllm import RequestOutput

        try:
            outputs = [one for one in self.engine.step() if isinstance(one, RequestOutput) and one.finished]
        except self._dead:
            raise StoppedError(DEAD) from None
        done: list[Answer | LineError] = []
        for output in outputs:
            if output.request_id not in self._asked:  # of a run that was given up
                continue
            request, asked = self._asked.pop(output.request_id)
            if any(choice.finish_reason == "error" for choice in output.outputs):
                done.append(
                    LineError("engine_error", "vLLM failed at it", line=request.line, custom_id=request.custom_id)
                )
            else:
                done.append(Answer(request.line, request.custom_id, body_of(output, asked, self.model)))
        return done

    def abandon(self) -> None:
        """Take what is not finished out of the engine."""
        self.engine.abort_request(list(self._asked))
        self._asked.clear()

    def close(self) -> None:
        """End the engine and the processes it started."""
        self.engine.engine_core.shutdown(timeout=15)  # else vLLM kills its own children at once


def prepare(model: Path | str) -> None:
    """What vLLM reads from the environment, where it does not say otherwise; and our children's end."""
    os.environ.update({**ENVIRONMENT, **os.environ} if Path(model).is_dir() else {})
    if Path(model).resolve() == MODEL_DIR:
        os.environ.update({**ONE_RANK, **os.environ})
        if "torch" in sys.modules:  # which has read that variable already
            sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    follow_us()


def follow_us() -> None:
    """Children that we fork from now on end with us."""
    us = [0]
    os.register_at_fork(before=lambda: us.__setitem__(0, os.getpid()), after_in_child=lambda: end_with_parent(us[0]))


def end_with_parent(parent: int = 0) -> None:
    """In a child: the operating system kills it when its parent has ended, also by kill -9.

    `parent` is its pid, where it is known, in case that it has ended before we could ask for this. vLLM's workers notice
    the end of the engine's process by themselves, and follow it.
    """
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("vllm", "torch", "transformers")}}


def _in_one_line(error: Exception) -> str:
    """pydantic tells a field, a reason and a link on three lines."""
    found = getattr(error, "errors", None)
    if callable(found):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found())
    return " ".join(str(error).split())
