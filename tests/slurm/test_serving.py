"""The sbatch files that ship, on a real cluster: one node, several nodes, two at once; the ways in which they end."""

import threading

import pytest
from testbed import until

from helpers import connections


def test_one_gpu_answers(reference):
    assert reference.text[0].startswith(" Paris")
    assert len(reference.text[1]) > 40
    assert "ready: tiny-llama answers at http://10.77.0.1" in reference.log()
    assert reference.connection().job_id == reference.id


#: sbatch typed in a terminal that is itself a job: its variables come along, and a proxy that knows no compute node.
FOREIGN = {
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_MEM_PER_CPU": "1",
    "SLURM_CPU_BIND": "none",
    "SLURM_GPUS": "7",
    "http_proxy": "http://127.0.0.1:9",
}


def test_two_servers_of_one_user_on_one_node(cluster, reference):
    second = cluster.submit("any-model", "--nodelist", reference.connection().node, **FOREIGN)
    assert second.answer() == reference.text
    assert second.connection().node == reference.connection().node
    assert second.connection().base_url != reference.connection().base_url
    _cancel(second)
    assert reference.answer() == reference.text  # the other one lives on


def _cancel(job):
    job.cancel()
    assert job.ended().startswith("cancelled")
    job.nothing_left()


def _kill_worker(job):
    job.kill_worker(1)
    assert "rank 0 on node" in job.ended()
    job.nothing_left()
    assert job.doctor()["cause"] in ("killed", "process-died")


def _kill_rank(job):
    job.kill_rank(1)
    assert "rank 1 on node" in job.ended()
    assert "ended with status 137 while serving" in job.outcome()
    assert job.state() == "FAILED"
    job.nothing_left()
    assert job.doctor()["cause"] == "killed"


#: One shipped file per kind of layout, the variables that make it another, and the way it ends.
LAYOUTS = {
    "1 node, TP2": ("llama-3.1-70b-tp2-h200", {}, _kill_worker),
    "2 nodes, TP2 x PP2": ("llama-3.1-405b-fp8-tp4-pp2-h100", {"TP": "2", "PP": "2"}, _kill_rank),  # PP2 is in lab 4
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(cluster, reference, layout):
    """The text of one GPU, from every layout; then one of its processes dies."""
    name, variables, end = LAYOUTS[layout]
    job = cluster.submit(name, **variables)
    assert job.answer() == reference.text
    assert all(job.log(f"rank-{rank}") for rank in range(int(layout.split()[0])))
    end(job)


def test_time_limit_drains(cluster, reference):
    """Streams in flight when the limit nears run to their end; the job ends by itself before Slurm ends it."""
    client, ends, errors = reference.client(), [], []

    def stream_until_it_stops():
        while True:
            try:
                chunks = client.completions.create(
                    model="tiny-llama", prompt="Tell me", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
                )
            except Exception as error:  # the server is going: refused, not cut off
                errors.append(error)
                return
            ends.append(None)
            mine = len(ends) - 1
            for chunk in chunks:
                ends[mine] = chunk.choices[0].finish_reason or ends[mine]

    threads = [threading.Thread(target=stream_until_it_stops) for _ in range(4)]
    for thread in threads:
        thread.start()
    until("four streams", 60, lambda: len(ends) >= 4)
    minutes, seconds = reference.facts()["RunTime"].split(":")[-2:]
    cluster.run(
        "scontrol", "update", f"jobid={reference.id}", f"timelimit={int(minutes) + (2 if int(seconds) < 50 else 3)}"
    )
    outcome = reference.ended(timeout=300)
    for thread in threads:
        thread.join(30)
    assert outcome.startswith("finished: stopped before the time limit")
    assert reference.state() == "COMPLETED"
    assert "draining" in reference.log()
    assert len(ends) >= 4 and set(ends) == {"length"}
    assert len(errors) == 4
    reference.nothing_left()
    assert not list((reference.of_class / "servers").iterdir()), "nor does the class find it"
    assert not [c for c in connections.read_all() if c.job_id == reference.id]
