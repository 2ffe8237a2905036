import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.scheduler import Request, reserve, simulate
from helpers.trace import Trace, TraceError

REQUESTS = [
    Request("a", tuple(range(20)), 15),
    Request("b", (*range(16), 99), 25, arrival=2),
    Request("c", 10, 16, arrival=3),
]
TRACE = simulate(REQUESTS, blocks=7, block_size=8, max_num_batched_tokens=16, max_num_seqs=3, prefix_caching=True)


def changed(change) -> list[str]:
    """What the invariants say after someone has meddled with the steps of a sound trace."""
    steps = copy.deepcopy(TRACE.steps)
    change(steps)
    return Trace(TRACE.settings, TRACE.told, steps).invariants()


def find(steps: list[dict], kind: str) -> tuple[dict, int]:
    return next((r, i) for r in steps for i, event in enumerate(r["events"]) if event[0] == kind)


def drop(kind: str):
    def change(steps: list[dict]) -> None:
        record, i = find(steps, kind)
        del record["events"][i]

    return change


def someone_elses_block(steps: list[dict]) -> None:
    record, i = find(steps[1:], "take")
    record["events"][i] = (*record["events"][i][:2], 1)


def field(name: str, value: int):
    return lambda steps: steps[3].update({name: value})


def test_this_trace_has_all_kinds_of_events_and_is_sound() -> None:
    kinds = {event[0] for record in TRACE.steps for event in record["events"]}
    assert kinds == {"arrive", "admit", "take", "prefill", "preempt", "finish", "free"}
    assert TRACE.invariants() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (someone_elses_block, "goes to"),
        (drop("take"), "more tokens than"),
        (drop("prefill"), "prefill is told as"),
        (drop("finish"), "never finishes"),
        (lambda steps: steps[-1].update(events=[e for e in steps[-1]["events"] if e[0] != "free"]), "never given back"),
        (field("prefill", 40), "more than max_num_batched_tokens"),
        (field("running", 4), "more than max_num_seqs"),
        (field("blocks", 1), "blocks is told as 1"),
        (field("tokens", 1), "tokens is told as 1"),
        (field("step", 1), "told twice"),
        (lambda steps: steps[-1].update(count=9), "finishes after"),
    ],
)
def test_a_wrong_trace_is_found_out(change, words) -> None:
    assert any(words in sentence for sentence in changed(change))


def test_requests_admitted_out_of_turn_are_found_out() -> None:
    told = [{**TRACE.told[0], "arrival": 9}, *TRACE.told[1:]]
    assert any("admitted before it" in sentence for sentence in Trace(TRACE.settings, told, TRACE.steps).invariants())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_json_there_and_back(prompt: int, output: int, contiguous: bool) -> None:
    requests = [Request("a", prompt, output), Request("</script>", prompt, output, 3)]
    trace = reserve(requests, blocks=12) if contiguous else simulate(requests, blocks=12)
    again = Trace.from_json(trace.to_json())
    assert again == trace and again.requests == trace.requests and again.invariants() == []
    assert isinstance(json.loads(trace.to_json())["steps"], list)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"settings": {}}', '{"settings": {}, "requests": [], "steps": [{}]}']
)
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="no trace"):
        Trace.from_json(text)


def test_table_has_a_row_for_each_step() -> None:
    table = TRACE.table()
    assert len(table) == TRACE.duration and table.index.is_unique
    assert table.blocks.max() == TRACE.peak_blocks and table.blocks_after.max() == TRACE.peak_reported
    assert table.decode.sum() + sum(life.preemptions + 1 for life in TRACE.requests.values()) >= sum(
        r.output for r in REQUESTS
    )


def test_summary_says_what_a_picture_shows() -> None:
    text = TRACE.summary()
    assert text.startswith("3 requests in") and "preempted" in text and "of 6 blocks" in text
    assert simulate([Request("a", 4, 2)], blocks=3).summary().startswith("1 request in 2 steps.")
