"""The simulator's predictions against a real vLLM server with few blocks: peaks, order, preemptions, prefix hits."""

import pytest

from helpers import connections, real_engine
from helpers.client import client_for
from helpers.real_engine import EngineError, workload
from helpers.scheduler import Request, simulate
from helpers.server import ServerError

BLOCKS = 33
# All begin a new block within their first steps and no other before the first has finished: the peak lasts for 80 steps, a
# third of a second, and cannot fall between two looks at the gauge. None ends less than 25 steps after another.
LENGTHS = {"a": (115, 220), "b": (250, 190), "c": (120, 160), "d": (118, 130), "e": (245, 255), "f": (240, 100)}
CACHE = {"blocks": BLOCKS, "block_size": real_engine.BLOCK_SIZE, "prefix_caching": True}


@pytest.fixture(scope="module")
def servers():
    """With one seat, and with 16."""
    started = real_engine.start_servers(blocks=BLOCKS, max_num_seqs=[1, 16])
    yield started
    for server in started:
        server.stop()
        assert not server.connection.path.exists()


def test_connect_does_not_find_them(servers):
    paths = [server.connection.path for server in servers]
    assert all(path.parent.name == "experiments" for path in paths)
    assert not set(paths) & {connection.path for connection in connections.read_all()}


@pytest.mark.parametrize("seats", [1, 16])
def test_peak_and_order_are_predicted(servers, seats):
    requests = workload(LENGTHS, seed=seats)
    trace = simulate(requests, max_num_seqs=seats, **CACHE)
    run = real_engine.serve(servers[seats > 1], requests)
    table = real_engine.compare(trace, run)
    assert (table["simulator"] == table["vLLM"]).all(), table
    assert run.peak_blocks >= 4 and len(run.finish_order) == len(LENGTHS)
    assert max(shot.running for shot in run.recording.snapshots) == min(seats, len(LENGTHS))
    assert run.tokens_per_second * run.seconds == pytest.approx(sum(output for _, output in LENGTHS.values()))


def test_what_no_longer_fits_is_preempted(servers):
    requests = workload(dict.fromkeys("abcdefghijkl", (150, 300)))
    trace = simulate(requests, max_num_seqs=16, **CACHE)
    run = real_engine.serve(servers[1], requests)
    assert run.preemptions == trace.preemptions, real_engine.compare(trace, run)
    assert run.preemptions > 0 and run.peak_blocks == BLOCKS - 1


def test_a_shared_beginning_is_found(servers):
    requests = workload(dict.fromkeys("abcdef", (320, 8)), shared=300)
    trace = simulate(requests, max_num_seqs=16, **CACHE)
    assert real_engine.serve(servers[1], requests).prefix_hits == trace.prefix_hits == 5 * 2 * real_engine.BLOCK_SIZE


def test_the_picture_has_a_column_for_each(servers):
    requests = workload({"a": (20, 20)}, seed=5)
    run, trace = real_engine.serve(servers[1], requests), simulate(requests, max_num_seqs=16, **CACHE)
    figure = real_engine.beside({"one": (trace, run), "again": (trace, run)})
    assert len(figure.axes) == 4 and "tokens/s" in figure.axes[0].get_title(loc="left")
    assert real_engine.progress(trace).index[-1] == 20


@pytest.mark.parametrize(
    "prompt, output, said", [((300,) * 2040, 20, "got 8 of 20 tokens.*context"), ((5000,), 5, "out of vocabulary")]
)
def test_what_the_server_refuses_is_one_sentence(servers, prompt, output, said):
    with pytest.raises(EngineError, match=said):
        real_engine.serve(servers[1], [Request("a", prompt, output)])


def test_one_that_cannot_be_paused(live_server):
    with pytest.raises(EngineError, match="cannot be paused"):
        real_engine.serve(live_server, workload({"a": (20, 20)}))


def test_a_server_that_dies_is_said(servers):
    client = client_for(servers[0].connection)
    servers[0].stop()
    with pytest.raises(Exception, match="Nothing answers"):
        real_engine.serve(client, workload({"a": (20, 20)}))


def test_one_that_cannot_start_leaves_none_behind():
    folder = connections.home() / "experiments"
    before = set(folder.glob("*.json"))
    with pytest.raises(ServerError, match="cache"):
        real_engine.start_servers(blocks=3, max_num_seqs=[1])
    assert set(folder.glob("*.json")) == before
