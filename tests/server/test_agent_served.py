"""The client with tools, against a real server: calls that are forced run, and a server without a parser says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.client import client_for

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "labs" / "scripts"))
import agent_with_tools as agent  # noqa: E402

pytestmark = pytest.mark.usefixtures("live_server")
QUESTION = "How many H100 does Llama 3.1 70B need?"


def test_the_small_llama_calls_a_tool_and_gets_its_result(live_server) -> None:
    asked, called, result, answer = agent.converse(client_for(live_server.connection), QUESTION, forced=True)
    assert asked == {"role": "user", "content": QUESTION}
    assert called["content"] in agent.calls()
    call = json.loads(called["content"])
    assert result["content"].startswith(f"{call['name']}: ") and "error" not in result["content"]
    assert answer["role"] == "assistant" and answer["content"]


def test_a_server_without_a_parser_is_told_plainly() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "labs/scripts/agent_with_tools.py", QUESTION], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert done.stdout == f"user: {QUESTION}\n"
    assert "tool-call-parser" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("gpus_needed", '{"model": "llama-3.1-70b", "gpu": "H100"}', "2 H100 (TP2 x PP1), with room for"),
        ("gpus_needed", '{"model": "llama-3.1-70b"}', "error: "),
        ("gpus_needed", '{"model": "llama-3.1-70b", "gpu": "H1', "error: "),
        ("gpus_needed", '{"model": "gpt-9", "gpu": "H100"}', "error: "),
        ("sing", "{}", "error: there is no tool 'sing'"),
    ],
)
def test_a_call_that_cannot_be_made_is_answered_so_that_the_model_can_mend_it(name, arguments, said) -> None:
    assert agent.run(agent.functions(None), name, arguments).startswith(said)
