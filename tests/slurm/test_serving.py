"""The sbatch files that ship, on a real cluster: one node, several nodes, two at once; the way they stop."""

import threading
import time

import pytest

from helpers import connections

#: One shipped file per kind of layout, with the variables that make it small: TP1 is the reference for the text.
LAYOUTS = {
    "1 node, TP1": ("llama-3.1-8b", {}),
    "1 node, TP2": ("llama-3.1-70b-tp2-h200", {}),
    "2 nodes, PP2": ("llama-3.1-405b-fp8-tp4-pp2-h100", {}),
    "2 nodes, TP2 x PP2": ("llama-3.1-405b-fp8-tp4-pp2-h100", {"TP": "2", "PP": "2"}),
    "4 nodes, PP4": ("llama-3.1-405b-tp4-pp4-h100", {}),
}


@pytest.fixture(scope="module")
def reference(cluster):
    """A TP1 server for the tests that need any server, and its greedy text."""
    job = cluster.submit("llama-3.1-8b")
    job.text = job.answer()
    return job


def test_one_gpu_answers(reference):
    assert reference.text[0].startswith(" Paris")
    assert len(reference.text[1]) > 40
    assert "ready: tiny-llama answers at http://10.77.0.1" in reference.log()
    assert reference.connection().job_id == reference.id


def test_two_servers_of_one_user_on_one_node(cluster, reference):
    second = cluster.submit("any-model", "--nodelist", reference.connection().node)
    assert second.answer() == reference.text
    assert second.connection().node == reference.connection().node
    assert second.connection().base_url != reference.connection().base_url
    second.cancel()
    assert second.ended().startswith("cancelled")
    second.nothing_left()
    assert reference.answer() == reference.text  # the other one lives on


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_every_layout_says_the_same(cluster, reference, layout):
    name, variables = LAYOUTS[layout]
    job = cluster.submit(name, **variables)
    assert job.answer() == reference.text
    nodes = int(layout.split()[0])
    assert all(job.log(f"rank-{rank}") for rank in range(nodes))
    job.cancel()
    assert job.ended().startswith("cancelled")
    job.nothing_left()


@pytest.mark.slow
def test_time_limit_drains(cluster):
    """Requests in flight when the limit nears are finished; the job ends by itself before Slurm ends it."""
    job = cluster.submit("any-model", "--time=4", "--signal=B:USR1@60", DRAIN_SECONDS="40")
    client, replies, errors = job.client(), [], []

    def ask_until_it_stops():
        while True:
            try:
                replies.append(_ask(client))
            except Exception as error:  # the server is going: refused, not cut off
                errors.append(error)
                return

    threads = [threading.Thread(target=ask_until_it_stops) for _ in range(4)]
    for thread in threads:
        thread.start()
    outcome = job.ended(timeout=300)
    for thread in threads:
        thread.join(30)
    assert outcome.startswith("finished: stopped before the time limit")
    assert job.facts()["JobState"] == "COMPLETED"
    assert "draining" in job.log()
    assert replies and {reply.choices[0].finish_reason for reply in replies} == {"length"}
    assert all(reply.usage.completion_tokens == 400 for reply in replies)
    job.nothing_left()


def _ask(client):
    return client.completions.create(
        model="tiny-llama", prompt="Tell me", max_tokens=400, extra_body={"ignore_eos": True}
    )


def test_drain_finishes_streams_in_flight(cluster, reference):
    """Started before the signal, still streaming after it: every stream ends with a finish_reason."""
    client, ends = reference.client(), []

    def stream():
        reason = None
        for chunk in client.completions.create(
            model="tiny-llama", prompt="Hello", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        ):
            reason = chunk.choices[0].finish_reason or reason
        ends.append(reason)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    cluster.run("scancel", "--batch", "--signal=USR1", reference.id)
    for thread in threads:
        thread.join(120)
    assert ends == ["length"] * 4
    assert reference.ended().startswith("finished")
    reference.nothing_left()
    assert not [c for c in connections.read_all() if c.job_id == reference.id]
