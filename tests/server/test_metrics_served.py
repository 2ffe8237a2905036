"""Metrics of a real server: what they count, that they ask for the key, and the view in a notebook's kernel."""

import time

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import metrics
from helpers.client import WrongKeyError, connect
from helpers.tiny import MODEL_NAME

BLOCK = 128


@pytest.fixture
def client(live_server):
    """Connected to a server that has nothing to do."""
    found = connect(quiet=True)
    settled(found, lambda now: now.running == now.waiting == 0)
    return found


def settled(client, condition, seconds: float = 60) -> metrics.Snapshot:
    """The first snapshot that fulfils the condition: counters follow an answer by a moment."""
    deadline = time.monotonic() + seconds
    while not condition(now := metrics.snapshot(client)):
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


def complete(client, prompt: str, tokens: int, count: int = 1):
    options = {"max_tokens": tokens, "n": count, "extra_body": {"ignore_eos": True}}
    return client.completions.create(model=MODEL_NAME, prompt=prompt, **options).usage


def test_tokens_are_counted_to_the_last_one(client):
    before = metrics.snapshot(client)
    usage = complete(client, "The weather in Boston is", 37, count=3)
    after = settled(client, lambda now: now.generation_tokens >= before.generation_tokens + 111)
    assert after.generation_tokens - before.generation_tokens == usage.completion_tokens == 37 * 3
    assert (after.prompt_tokens - before.prompt_tokens) % usage.prompt_tokens == 0
    assert after.preemptions == before.preemptions


def test_a_long_request_is_seen_at_work_and_in_the_cache(client):
    with metrics.record(client, interval=0.05) as recording:
        # long enough in its last block to be seen there
        usage = complete(client, "The weather in Boston is", 7 * BLOCK + 120)
    frame = recording.frame
    assert frame["running"].max() == 1 and 0 < frame["kv_usage"].max() < 0.01
    assert frame["blocks_used"].max() == -(-(usage.total_tokens - 1) // BLOCK), "the last token is not kept"
    assert recording.snapshots[0].block_size == BLOCK and recording.snapshots[0].kv_blocks == 2**18 // BLOCK - 1
    assert frame["generation_tokens_per_second"].max() > 0
    assert settled(client, lambda now: now.running == 0).kv_usage == 0


def test_a_prompt_sent_again_is_found_in_the_prefix_cache(client):
    prompt = f"Prompt of {time.time()}. " + "The weather in Boston is sunny. " * 60
    tokens = complete(client, prompt, 1).prompt_tokens
    before = settled(client, lambda now: now.running == 0)
    complete(client, prompt, 1)
    after = settled(client, lambda now: now.prompt_tokens > before.prompt_tokens)
    assert after.prefix_queries - before.prefix_queries == tokens
    assert after.prefix_hits - before.prefix_hits == (tokens - 1) // BLOCK * BLOCK, "whole blocks, never the last token"


def test_the_key_is_needed(client):
    for key in ("wrong", "none"):
        with pytest.raises(WrongKeyError, match="refuses this API key"):
            metrics.read(client.with_options(api_key=key))


def test_the_table_and_the_snapshot_agree(client):
    table, now = metrics.read(client), metrics.snapshot(client)
    value = table.set_index("metric")["value"]
    assert value["generation_tokens"] == now.generation_tokens > 0
    assert metrics.quantile(table, "time_to_first_token_seconds", 0.5) > 0


def test_the_view_in_a_notebook_ends_with_its_block_and_leaves_its_picture(client):
    cells = [
        "from helpers import metrics_view\nfrom helpers.client import connect\nclient = connect(quiet=True)",
        "with metrics_view.watch(client, interval=0.2) as view:\n"
        f"    client.completions.create(model='{MODEL_NAME}', prompt='A', max_tokens=600, extra_body={{'ignore_eos': True}})",
        "print(view.is_live, max(shot.running for shot in view.recording.snapshots))",
        "metrics_view.watch(client)",
        "print(metrics_view._newest.is_live)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120).execute()
    view, said, free, alive = (cell.outputs for cell in notebook.cells[1:])
    assert said[0].text == "False 1\n" and alive[0].text == "True\n", "a cell runs on while the view lives"
    still, widget = {"text/plain", "image/png"}, "application/vnd.jupyter.widget-view+json"
    assert [set(output.data) for output in free] == [still | {widget}]
    assert [set(output.data) for output in view] == [still], "what has ended is a picture in every page"
    assert "0 running" in view[0].data["text/plain"] and "tokens/s: " in view[0].data["text/plain"]
