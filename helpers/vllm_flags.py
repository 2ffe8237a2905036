"""Does this machine's vLLM take these flags?  python -m helpers.vllm_flags --max-model-len 8192 --tool-call-parser hermes

Asks vLLM's own parser, so it needs vLLM and some seconds; prints JSON. Runs in the Python that will serve.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.errors import WorkshopError

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

PATIENCE = 120  # seconds: importing vLLM from shared storage for the first time takes that long


class FlagError(WorkshopError):
    """vLLM cannot be asked: it is not there, or broke while it was imported."""


@cache
def complaint(flags: tuple[str, ...], python: str = sys.executable) -> str:
    """One sentence on the first flag that the vLLM of `python` refuses; empty when it takes them all.

    Raises FlagError when that Python has no vLLM to ask.
    """
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": root, "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [python, "-m", __name__, *flags], capture_output=True, text=True, timeout=PATIENCE, env=environment
        )
        return str(json.loads(done.stdout.splitlines()[-1])["complaint"])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError, KeyError) as error:
        raise FlagError(
            f"vLLM's flags could not be checked: {python} has no vLLM that imports. Compare with `vllm serve --help=all`."
        ) from error


def check(flags: Sequence[str]) -> str:
    """As complaint(), in this very process."""
    parser, validate = _vllm_parser()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = parser.parse_args(["some/model", *flags])
    except SystemExit:
        return _explain(said.getvalue().strip().splitlines()[-1].partition("error: ")[2], parser)
    except (ValueError, TypeError) as error:
        return f"vLLM refuses the flags: {error}"
    try:
        validate(arguments)
    except (ValueError, TypeError, KeyError) as error:
        return f"vLLM refuses the flags: {str(error).strip()}"
    return _unknown_parser(arguments)


@cache
def _vllm_parser() -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], None]]:
    """vLLM's own parser of `vllm serve`, and its check of what it parsed."""
    try:  # moved in vLLM 0.3x
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:
        from vllm.entrypoints.openai.cli_args import (  # type: ignore[no-redef]
            make_arg_parser,
            validate_parsed_serve_args,
        )
    return make_arg_parser(_empty_parser()), validate_parsed_serve_args


def _empty_parser() -> "FlexibleArgumentParser":
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return FlexibleArgumentParser(prog="vllm serve")  # type: ignore[no-untyped-call]  # vLLM's own, without types


def known() -> set[str]:
    """Every option with two dashes of `vllm serve`, `vllm run-batch` and `vllm bench serve`, in this very process."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.entrypoints.launchers import run_batch

    bench = _empty_parser()
    add_cli_args(bench)
    parsers = [_vllm_parser()[0], run_batch.make_arg_parser(_empty_parser()), bench]
    options = [word for parser in parsers for action in parser._actions for word in action.option_strings]
    return {word for word in options if word.startswith("--")}


def _explain(error: str, parser: argparse.ArgumentParser) -> str:
    unknown = error.removeprefix("unrecognized arguments: ")
    if unknown == error:
        return f"vLLM refuses the flags: {error}."
    flag = next((word for word in unknown.split() if word.startswith("-")), unknown.split()[0]).partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
    mend = f"did you mean {near[0]}?" if near else "`vllm serve --help=all` lists those it has."
    return f"vLLM has no flag {flag}: {mend}"


def _unknown_parser(arguments: argparse.Namespace) -> str:
    """The parsers for tools and thinking are looked up by name only when the server starts."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for option, manager in (("tool_call_parser", ToolParserManager), ("reasoning_parser", ReasoningParserManager)):
        name = getattr(arguments, option, None)
        if name and name not in manager.list_registered():
            near = difflib.get_close_matches(name, manager.list_registered(), n=3, cutoff=0.4)
            flag = f"--{option.replace('_', '-')}"
            mend = f"did you mean {' or '.join(near)}?" if near else f"`vllm serve --help={flag[2:]}` tells more."
            return f"vLLM has no {name} for {flag}: {mend}"
    return ""


if __name__ == "__main__":
    print(json.dumps({"complaint": check(sys.argv[1:])}))
