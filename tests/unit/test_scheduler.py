import random
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from helpers import real_engine
from helpers.scheduler import Request, SimulationError, page, reserve, simulate


def request_lists(longest: int):
    """1 to 12 requests that fit `longest` tokens of cache; half of them with prompts that begin alike."""
    output = st.integers(1, longest)
    shape = output.flatmap(
        lambda out: st.tuples(st.integers(1, longest + 1 - out), st.just(out), st.integers(0, 15), st.booleans())
    )
    return st.lists(shape, min_size=1, max_size=12).map(
        lambda shapes: [
            Request(f"r{i}", tuple(range(prompt)) if alike else prompt, output, arrival)
            for i, (prompt, output, arrival, alike) in enumerate(shapes)
        ]
    )


@st.composite
def workloads(draw):
    size, blocks, seats = draw(st.integers(1, 8)), draw(st.integers(2, 16)), draw(st.integers(1, 6))
    requests = draw(request_lists((blocks - 1) * size))
    chunked = draw(st.booleans())
    least = seats if chunked else max(seats, *(request.cached_tokens for request in requests))
    return requests, {
        "blocks": blocks, "block_size": size, "max_num_seqs": seats,
        "max_num_batched_tokens": least + draw(st.integers(0, 20)), "chunked": chunked,
        "policy": draw(st.sampled_from(["continuous", "static"])), "prefix_caching": draw(st.booleans()),
    }  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(workloads())
def test_traces_are_sound(workload) -> None:
    requests, chosen = workload
    trace = simulate(requests, **chosen)
    assert trace.invariants() == []
    assert all(life.finish >= life.first_token >= life.admitted >= life.arrival for life in trace.requests.values())
    assert all(life.finish - life.first_token >= life.output - 1 for life in trace.requests.values())
    assert all(0 <= life.cached < life.prompt and life.recomputed >= 0 for life in trace.requests.values())
    assert sorted(trace.finish_order) == sorted(request.id for request in requests)
    assert simulate(requests, **chosen) == trace


@settings(deadline=None, max_examples=100)
@given(workloads())
def test_static_batches_neither_preempt_nor_mix(workload) -> None:
    requests, chosen = workload
    trace = simulate(requests, **{**chosen, "policy": "static"})
    assert trace.preemptions == 0
    lives = sorted(trace.requests.values(), key=lambda life: life.admitted)
    for earlier in lives:
        for later in lives:
            overlap = later.admitted <= earlier.finish and earlier.admitted <= later.finish
            batch = [life for life in lives if life.admitted <= earlier.finish and earlier.admitted <= life.finish]
            assert not overlap or len(batch) <= chosen["max_num_seqs"]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.data())
def test_memory_adds_up_and_pages_waste_less_than_a_block(size, data) -> None:
    requests = data.draw(request_lists(15 * size))
    longest = max(request.cached_tokens for request in requests)
    pages = page(requests, blocks=16, block_size=size)
    pieces = [reserve(requests, blocks=16, block_size=size, max_len=max_len) for max_len in (longest, None)]
    for trace in (pages, *pieces):
        assert trace.invariants() == []
        for step in trace.each_step():
            assert 0 <= step["tokens"] <= step["blocks"] * size
            assert 0 <= step["stranded"] <= 15 - step["blocks"]
    for step in pages.each_step():
        assert step["blocks"] * size - step["tokens"] <= (size - 1) * step["running"]
        assert step["stranded"] == 0
    assert pieces[0].preemptions == pieces[1].preemptions == 0
    assert all(life.cached == 0 for life in pages.requests.values())


def test_shares_of_the_memory() -> None:
    """Pieces of 32 for 8 + 8 tokens: the second request does not fit beside the first in 48 slots."""
    table = reserve([Request("a", 8, 9), Request("b", 8, 9)], blocks=4, max_len=32).table()
    parts = table[["tokens", "internal", "external", "free"]]
    assert (parts.sum(axis=1) == 48).all() and list(parts.iloc[0]) == [8, 24, 0, 16] and len(table) == 18
    shares = page([Request("a", 8, 9), Request("b", 8, 9)], blocks=4).memory_shares()
    assert shares.sum() == pytest.approx(1) and shares.tokens == pytest.approx(2 * 12 / 48)


def test_one_request_by_hand() -> None:
    """5 tokens in, 4 out, blocks of 4: read in step 0, tokens in steps 0 to 3; the fourth needs no slot, so 8 slots do."""
    trace = simulate([Request("a", 5, 4)], blocks=3, block_size=4)
    life = trace.requests["a"]
    assert (life.first_token, life.finish, trace.duration, trace.peak_blocks, trace.peak_reported) == (0, 3, 4, 2, 2)
    assert list(trace.table().tokens) == [5, 6, 7, 8]


def test_chunks_and_budget_by_hand() -> None:
    """A budget of 8: a decodes in steps 1 and 2 while b, with 20 tokens, gets 7 in each; nobody joins beside a partial prompt."""
    trace = simulate(
        [Request("a", 8, 3), Request("b", 20, 1), Request("c", 2, 1)],
        blocks=30,
        block_size=4,
        max_num_batched_tokens=8,
        max_num_seqs=4,
    )
    assert list(trace.table().prefill) == [8, 7, 7, 8]
    assert {name: life.first_token for name, life in trace.requests.items()} == {"a": 0, "b": 3, "c": 3}


def test_static_waits_for_the_longest() -> None:
    requests = [Request("a", 4, 2), Request("b", 4, 10), Request("c", 4, 2)]
    chosen = {"blocks": 20, "max_num_seqs": 2, "block_size": 4}
    static, continuous = (simulate(requests, **chosen, policy=policy) for policy in ("static", "continuous"))
    assert static.requests["c"].admitted == 10 and continuous.requests["c"].admitted == 2
    assert static.steps[-1]["step"] == 11 and continuous.steps[-1]["blocks_after"] == 0
    in_between = static.table().loc[5]
    assert in_between.blocks == 2 + 3, "a keeps its blocks while b writes"


def test_the_last_to_come_is_preempted_and_computes_again() -> None:
    trace = simulate([Request("a", 4, 12), Request("b", 4, 12)], blocks=6, block_size=4, max_num_seqs=2)
    a, b = trace.requests.values()
    assert (a.preemptions, b.preemptions) == (0, 1) and a.finish < b.finish
    assert b.recomputed == 8 and trace.preemptions == 1  # its prompt and the 4 tokens computed of its answer
    assert trace.peak_blocks == 4


def test_shared_prefix() -> None:
    """Blocks of 4. b shares the two full blocks of a's prompt; c, all in the cache, still computes its last block."""
    prompt = tuple(range(10))
    requests = [
        Request("a", prompt, 9),
        Request("b", (*prompt[:8], 77, 78), 9),
        Request("c", prompt[:8], 9),
        Request("d", 10, 9),
    ]
    trace = simulate(requests, blocks=40, block_size=4, prefix_caching=True)
    assert [life.cached for life in trace.requests.values()] == [0, 8, 4, 0]
    assert (trace.prefix_queries, trace.prefix_hits) == (38, 12)
    assert simulate(requests, blocks=40, block_size=4).prefix_hits == 0
    assert (
        page(requests, blocks=40, block_size=4, prefix_sharing=True).peak_blocks
        == page(requests, blocks=40, block_size=4).peak_blocks - 3
    )


def test_cached_blocks_survive_their_owner_until_they_are_needed() -> None:
    prompt = tuple(range(8))
    again = [Request("a", prompt, 1), Request("b", (*prompt, 9), 1, arrival=5)]
    assert simulate(again, blocks=10, block_size=4, prefix_caching=True).requests["b"].cached == 8
    between = [again[0], Request("x", 12, 1, arrival=1), again[1]]
    assert simulate(between, blocks=4, block_size=4, prefix_caching=True).requests["b"].cached == 0


def test_holes_are_external_waste() -> None:
    """12 blocks; a and c leave holes of 4 and 4 beside b: d needs 6 in one piece and waits for b."""
    requests = [Request("a", 14, 3), Request("b", 5, 12), Request("c", 14, 3), Request("d", 20, 5)]
    pieces = reserve(requests, blocks=13, block_size=4)
    pages = page(requests, blocks=13, block_size=4)
    assert pieces.table().external.max() == 8 * 4 and pages.table().external.max() == 0
    assert pages.requests["d"].admitted < pieces.requests["d"].admitted == pieces.requests["b"].finish + 1


@pytest.mark.parametrize(
    ("requests", "chosen", "words"),
    [
        ([], {}, "no request"),
        ([Request("a", 0, 3)], {}, "prompt of 0"),
        ([Request("a", (), 3)], {}, "prompt of 0"),
        ([Request("a", -4, 3)], {}, "prompt of -4"),
        ([Request("a", 4, 0)], {}, "asks for 0"),
        ([Request("a", 4, 2.5)], {}, "asks for 2.5"),
        ([Request("a", 4, 1, -1)], {}, "step -1"),
        ([Request("a", 4, 1), Request("a", 5, 1)], {}, "Two requests"),
        ([Request("a", 4, 1)], {"blocks": 0}, "blocks=0"),
        ([Request("a", 4, 1)], {"blocks": 1}, "one block is never used"),
        ([Request("a", 4, 1)], {"block_size": 0}, "block_size=0"),
        ([Request("a", 4, 1)], {"max_num_seqs": 0}, "max_num_seqs=0"),
        ([Request("a", 4, 1)], {"max_num_seqs": True}, "max_num_seqs=True"),
        ([Request("a", 4, 1)], {"max_num_batched_tokens": 3, "max_num_seqs": 4}, "less than max_num_seqs=4"),
        ([Request("a", 140, 6)], {}, "raise blocks to 11 or more"),
        ([Request("a", 100, 6)], {"chunked": False, "max_num_batched_tokens": 99, "max_num_seqs": 4}, "chunked=True"),
        ([Request("a", 4, 1)], {"policy": "random"}, "no policy 'random'"),
    ],
)
def test_what_cannot_be_served_is_refused(requests, chosen, words) -> None:
    with pytest.raises(SimulationError, match=words):
        simulate(requests, **{"blocks": 10, "block_size": 16, **chosen})


def test_what_cannot_be_reserved_is_refused() -> None:
    with pytest.raises(SimulationError, match="max_len=20"):
        reserve([Request("a", 40, 6)], blocks=10, max_len=20)
    with pytest.raises(SimulationError, match="max_len=0"):
        reserve([Request("a", 40, 6)], blocks=10, max_len=0)
    with pytest.raises(SimulationError, match="raise blocks to 65"):
        reserve([Request("a", 40, 6)], blocks=10, max_len=1024)


def test_a_request_that_just_fits_is_served() -> None:
    assert simulate([Request("a", 139, 6)], blocks=10).peak_blocks == 9


def many(number: int) -> list[Request]:
    chance = random.Random(5)
    return [Request(str(i), chance.randint(128, 1024), chance.randint(512, 1536), i) for i in range(number)]


def test_speed() -> None:
    """10,000 requests in less than 5 times what Python takes to pass over each one in each step and do nothing.

    With the seats and the budget that vLLM has on an H100. Processor time, the best of three: other programs on the
    machine do not count.
    """

    def seconds(action) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            action()
            best = min(best, time.process_time() - start)
        return best

    requests = many(10_000)
    chosen = {"blocks": 20_000, "block_size": 128, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    trace = simulate(requests, **chosen)
    running = [record["running"] for record in trace.each_step()]

    def empty_loop() -> None:
        for number in running:
            for _ in range(number):
                pass

    ratio = seconds(lambda: simulate(requests, **chosen)) / seconds(empty_loop)
    print(f"{trace.duration:,} steps of {sum(running) / len(running):.0f} requests: {ratio:.1f} times the empty loop")
    assert ratio < 5


def test_a_real_server_needs_the_tokens_of_a_prompt() -> None:
    """Said before any server is asked: at port 9 nobody listens."""
    nobody = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0)
    with pytest.raises(real_engine.EngineError, match="'a' tells its prompt's length and not its tokens"):
        real_engine.serve(nobody, [Request("a", 5, 3)])


def test_memory_is_linear_in_requests() -> None:
    def size(number: int) -> int:
        trace = simulate(many(number), blocks=2000, block_size=128)
        events = [event for record in trace.steps for event in record["events"]]
        return sum(map(sys.getsizeof, trace.steps)) + sum(map(sys.getsizeof, events))

    assert size(4000) < 2.2 * size(2000) < 4.84 * size(1000)
