"""A real Slurm cluster of four nodes on this machine (slurm/testbed), and jobs on it that the tests submit and watch."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from openai import OpenAI

from helpers import connections, queue

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "slurm/testbed/cluster.sh"
STATE = Path(os.environ.get("WORKSHOP_TESTBED", "/tmp/workshop-testbed"))
NODES = 4
#: What the tests set or take away from what their own environment says.
OURS = {"SLURM_CONF": str(STATE / "slurm.conf"), "WORKSHOP_SITE": "testbed", "WORKSHOP_VENV": sys.prefix}
PROMPT, QUESTION = "The capital of France is", "What is the KV cache?"


def until(what, timeout, condition, *, every=0.2):
    """The first true value of condition(); fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {what() if callable(what) else what}"
        time.sleep(every)
    return value


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Job:
    """One job of the tests: its folder, its server's connection file, and what is left of it."""

    def __init__(self, cluster, job_id):
        self.cluster, self.id, self.seen, self.shared = cluster, job_id, set(), False
        self.since = time.time() - 5  # an earlier cluster, brought down in the middle, may have had jobs of the same id
        self.folder = connections.home() / "jobs" / job_id

    def __str__(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join([f"job {self.id}: {self.facts()}", *(f"--- {log}\n{log.read_text()[-3000:]}" for log in logs)])

    def facts(self):
        """What `scontrol show job` says, as a dictionary."""
        words = self.cluster.run("scontrol", "show", "job", "-o", self.id).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self):
        return self.facts().get("JobState", "")

    def over(self):
        return self.state() not in queue.WAITING | queue.RUNNING

    def log(self, name="launcher"):
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def outcome(self):
        path = self.folder / "outcome"
        return path.read_text().strip() if path.exists() else ""

    def connection(self):
        files = list((connections.home() / "servers").glob(f"*-{self.id}-*.json"))
        return connections.read(files[0]) if files else None

    def ready(self, timeout=400):
        """Its connection, once the file says ready; fails at once when the job ends before."""

        def look():
            assert not self.over(), f"ended before it was ready: {self}"
            connection = self.connection()
            return connection if connection and connection.state == connections.READY else None

        connection = until(lambda: f"the server: {self}", timeout, look)
        self.processes()  # to know them later, when their parents may be gone
        return connection

    def client(self):
        connection = self.ready()
        return OpenAI(base_url=connection.base_url, api_key=connection.api_key, max_retries=0, timeout=120)

    def answer(self):
        """Greedy texts of the small Llama, a completion and a chat: the same for every layout."""
        client = self.client()
        text = client.completions.create(model="tiny-llama", prompt=PROMPT, max_tokens=24, temperature=0)
        chat = client.chat.completions.create(
            model="tiny-llama", messages=[{"role": "user", "content": QUESTION}], max_tokens=60, temperature=0
        )
        return text.choices[0].text, chat.choices[0].message.content

    def ended(self, timeout=60):
        """Wait for the end; what the job said of it."""
        until(lambda: f"the end of {self}", timeout, self.over)
        return self.outcome()

    def cancel(self):
        self.cluster.run("scancel", self.id)

    def vllm_began(self):
        """Wait for vLLM's first words in the log of rank 0: all that comes before them is ours."""
        banner = "non-default args"
        until(lambda: f"vLLM: {self}", 120, lambda: banner in self.log("rank-0") or self.over())
        assert banner in self.log("rank-0"), self

    def kill_rank(self, rank):
        """kill -9 of the rank's vLLM: nothing in it can say goodbye."""
        pid = until("the rank's pid", 60, lambda: self.folder.joinpath(f"rank-{rank}.pid").read_text().strip())
        psutil.Process(int(pid)).kill()

    def kill_worker(self, rank):
        """kill -9 of a tensor-parallel worker, as the kernel does when memory runs out."""
        next(each for each in self.processes() if f"VLLM::Worker_TP{rank}" in " ".join(each.cmdline())).kill()

    def processes(self):
        """Living processes of this job on any node, its script among them.

        vLLM's workers write their title over their environment, so they are found as children, and remembered: an
        orphan has no parent that would lead to it.
        """
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_JOB_ID") == self.id:
                    self.seen.update([process, *process.children(recursive=True)])
        return [process for process in self.seen if _lives(process)]

    def nothing_left(self):
        """After the end: no process, no connection file, no key, no scratch folder."""
        until(lambda: f"job {self.id} to leave no process: {self.processes()}", 15, lambda: not self.processes())
        assert self.connection() is None
        assert not (self.folder / "authorization").exists()
        scratch = [path for path in Path("/tmp").glob(f"vllm-{self.id}-*") if path.stat().st_mtime > self.since]
        assert not scratch, scratch

    def doctor(self):
        """What `python -m helpers.slurm doctor JOB --json` says."""
        done = self.cluster.run(sys.executable, "-m", "helpers.slurm", "doctor", self.id, "--json", check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


class Cluster:
    """Slurm's commands against the test cluster, and the jobs submitted through it."""

    def __init__(self, folder):
        self.folder, self.jobs = folder, []
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env = {**kept, **OURS, "PYTHONPATH": str(ROOT)}

    def run(self, *command, check=True, **variables):
        done = subprocess.run(
            [str(word) for word in command], env={**self.env, **variables}, cwd=self.folder, text=True,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def submit(self, name, *options, **variables):
        """Submit slurm/NAME.sbatch as it ships, by sbatch itself, with variables in the environment."""
        done = self.run("sbatch", "--parsable", *options, ROOT / "slurm" / f"{name}.sbatch", **variables)
        return self.known(done.stdout.strip())

    def known(self, job_id):
        """A job that is cancelled at the end of the tests, whoever submitted it."""
        self.jobs.append(Job(self, job_id))
        return self.jobs[-1]

    def end(self, jobs):
        """Cancel jobs, all before any is waited for; those that are over already are not disturbed."""
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.ended()

    def strangers(self):
        """Processes in the nodes' networks beside Slurm's own: none, when no job is left."""
        names = [
            f"{node}: {psutil.Process(int(pid)).cmdline()}"
            for node in (f"node{number + 1}" for number in range(NODES))
            for pid in self.run("ip", "netns", "pids", f"workshop-{node}").stdout.split()
            if psutil.pid_exists(int(pid))
        ]
        return [name for name in names if "slurmd" not in name and "slurmstepd" not in name]

    def on_node(self, node, *command, **options):
        """Popen of a command inside the node's network."""
        return subprocess.Popen(["ip", "netns", "exec", f"workshop-{node}", *command], **options)
