"""Figures of the set-up and the start, printed and not judged:  python -m tests.benchmarks [--setup] [--slurm] [--load] [--batch] [--pairs 3]

Server: `helpers.server.start` against a bare `vllm serve` with the same flags, one after the other in turns, each timed
until it answers one completion. With --setup also: requirements/install.py against the bare `pip install` of its pins.
With --slurm, as root: slurm/any-model.sbatch on the test cluster, from sbatch to its connection file, against the same
`vllm serve` typed on the node; and how long after its first answer the connection file said ready.
With --load, and then nothing else: helpers.load.send_many against `vllm bench serve`, in turns on one server with the same
prompts and lengths, at 16 and 64 in flight; and the client's CPU per request against the openai client's own streaming.
With --batch, and then nothing else: the same questions with transformers one by one and with vLLM offline; and 1,000 of
them through helpers.batch against bare `LLM.generate`, with one and the same engine, in turns.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import batch, batch_lesson, keeper, load_stats, server
from helpers.batch_files import COMPLETIONS
from helpers.batch_vllm import InProcess
from helpers.client import client_for
from helpers.connections import Connection
from helpers.load import send_many
from helpers.tiny import MODEL_DIR, MODEL_NAME

ROOT = Path(__file__).parent.parent


def ours() -> float:
    started = time.monotonic()
    with server.start(quiet=True):
        return time.monotonic() - started


def bare() -> float:
    """`vllm serve` by hand, asked every tenth of a second whether it answers."""
    port = keeper.free_port()
    command = [Path(sys.executable).parent / "vllm", "serve", MODEL_DIR, "--host", keeper.HOST, "--port", str(port)]
    connection = Connection(f"http://{keeper.HOST}:{port}/v1", MODEL_NAME, "none", "")
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--served-model-name", MODEL_NAME, *keeper.FLAGS],
        env=keeper.ENVIRONMENT | keeper.ONE_RANK | os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not keeper.answers(connection):
        time.sleep(0.1)
    elapsed = time.monotonic() - started
    process.terminate()
    process.wait()
    return elapsed


def in_a_copy(*commands: str) -> float:
    """Seconds that the commands take in a fresh copy of the project."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        started = time.monotonic()
        for command in commands:
            subprocess.run(command, shell=True, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - started


def our_setup() -> float:
    return in_a_copy(f"{sys._base_executable} requirements/install.py")


def bare_setup() -> float:
    return in_a_copy(
        f"{sys._base_executable} -m venv .venv",
        ".venv/bin/pip install -qq --no-deps torch==2.13.0+cpu -r requirements/cpu.txt",
    )


def asked(connection: Connection) -> float:
    """The moment at which the server first answers."""
    while not keeper.answers(connection):
        time.sleep(0.02)
    return time.monotonic()


def slurm(pairs: int) -> None:
    """Jobs and bare servers in turns on one node of a cluster that is up (`make cluster NODES=4`)."""
    sys.path.insert(0, str(ROOT / "tests/slurm"))
    from testbed import Cluster, until

    lags = []
    with TemporaryDirectory() as folder:
        os.environ["WORKSHOP_HOME"] = folder
        cluster = Cluster(folder)

        def job() -> float:
            started = time.monotonic()
            ours = cluster.submit("any-model", "--nodelist=node1")
            answered = asked(until("the job's port", 60, ours.connection))
            ours.ready()
            ready = time.monotonic()
            lags.append(ready - answered)
            ours.cancel()
            ours.ended()
            return ready - started

        def typed() -> float:
            command = (cluster.jobs[-1].folder / "command").read_text().split()
            command[0], port = f"{sys.prefix}/bin/vllm", command[command.index("--port") + 1]
            environment = {**os.environ, **keeper.ONE_RANK, "VLLM_API_KEY": "none", "VLLM_CPU_KVCACHE_SPACE": "1"}
            environment["PYTHONPATH"] = str(ROOT)
            started = time.monotonic()
            process = cluster.on_node(
                "node1", *command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            answered = asked(Connection(f"http://10.77.0.11:{port}/v1", MODEL_NAME, "none", ""))
            process.terminate()
            process.wait()
            return answered - started

        compare("job ready", job, typed, pairs)
    print("ready after the first answer: " + ", ".join(f"{lag:.2f} s" for lag in lags))


# --- load ---------------------------------------------------------------------------------------------------------

OUTPUT_TOKENS = 64
ROUNDS = 4  # each of those in flight is followed by so many less one
FIGURES = {"output_throughput": "tokens/s", "median_ttft_ms": "TTFT ms", "median_tpot_ms": "TPOT ms"}


def prompts_for(count: int, seed: int) -> list[str]:
    """Prompts of some 60 tokens: shorter than a block of the CPU server, so that the prefix cache holds none of them."""
    draw = random.Random(seed)
    words = [
        "server",
        "token",
        "cache",
        "batch",
        "model",
        "queue",
        "prompt",
        "answer",
        "memory",
        "request",
        "latency",
        "thread",
    ]
    return [" ".join(draw.choices(words, k=50)) for _ in range(count)]


def our_load(connection: Connection, prompts: list[str], concurrency: int) -> tuple[dict[str, float], float]:
    """The figures of `send_many`, and its CPU milliseconds per request."""
    began = time.process_time()
    run = send_many(
        client_for(connection), prompts, threads=concurrency, model=connection.model, max_tokens=OUTPUT_TOKENS,
        temperature=0, ignore_eos=True,
    )  # fmt: skip
    spent = time.process_time() - began
    assert not run.failures, run
    felt = load_stats.percentiles(run)["p50"]
    speed = load_stats.throughput(run)["output_tokens_per_second"]
    return dict(zip(FIGURES, (speed, felt["TTFT"], felt["TPOT"]), strict=True)), 1000 * spent / len(prompts)


def vllm_load(connection: Connection, prompts: list[str], concurrency: int) -> dict[str, float]:
    """The same by `vllm bench serve`."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        command = [
            Path(sys.executable).parent / "vllm",
            "bench",
            "serve",
            "--backend",
            "openai",
            "--model",
            connection.model,
        ]
        command += ["--base-url", connection.base_url.removesuffix("/v1"), "--tokenizer", MODEL_DIR]
        command += ["--dataset-name", "custom", "--dataset-path", data, "--skip-chat-template", "--disable-shuffle"]
        command += ["--num-prompts", str(len(prompts)), "--custom-output-len", str(OUTPUT_TOKENS), "--ignore-eos"]
        command += ["--max-concurrency", str(concurrency), "--temperature", "0", "--disable-tqdm"]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        environment = keeper.ENVIRONMENT | os.environ | {"OPENAI_API_KEY": connection.api_key}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = json.loads((Path(folder) / "result.json").read_text())
    assert result["completed"] == len(prompts), result["completed"]
    assert result["total_output_tokens"] == len(prompts) * OUTPUT_TOKENS
    return {figure: result[figure] for figure in FIGURES}


def openai_cpu(connection: Connection, prompts: list[str], concurrency: int) -> float:
    """CPU milliseconds per request of the openai client alone: a thread pool, and each stream read to its end."""
    client = client_for(connection)

    def ask(prompt: str) -> None:
        options = {"max_tokens": OUTPUT_TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
        stream = client.completions.create(model=connection.model, prompt=prompt, stream=True, **options)
        assert sum(len(chunk.choices) for chunk in stream)

    began = time.process_time()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, prompts))
    return 1000 * (time.process_time() - began) / len(prompts)


def load(pairs: int) -> None:
    """Ours and vLLM's in turns, who is first in turns as well; then the medians of the ratios."""
    with server.start(quiet=True, private=True) as running:
        connection = running.connection
        for concurrency in (16, 64):
            our_load(
                connection, prompts_for(concurrency, -1), concurrency
            )  # the first of all pays for what starts late
            ratios, cpu = [], []
            for pair in range(pairs):
                prompts = [prompts_for(ROUNDS * concurrency, 10 * pair + turn) for turn in range(3)]
                if pair % 2:
                    theirs = vllm_load(connection, prompts[1], concurrency)
                    ours, spent = our_load(connection, prompts[0], concurrency)
                else:
                    ours, spent = our_load(connection, prompts[0], concurrency)
                    theirs = vllm_load(connection, prompts[1], concurrency)
                bare_spent = openai_cpu(connection, prompts[2], concurrency)
                ratios.append([ours[figure] / theirs[figure] for figure in FIGURES])
                cpu.append(spent / bare_spent)
                said = ", ".join(f"{name} {ours[f]:.1f} / {theirs[f]:.1f}" for f, name in FIGURES.items())
                print(f"  {concurrency} in flight: {said}; CPU ms {spent:.2f} / openai {bare_spent:.2f}", flush=True)
            medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
            said = ", ".join(f"{name.split()[0]} {m:.3f}" for name, m in zip(FIGURES.values(), medians, strict=True))
            print(f"{concurrency} in flight, send_many over vllm bench serve: {said}; ", end="")
            print(f"CPU over the openai client's: {statistics.median(cpu):.2f}")


def offline(pairs: int) -> None:
    """All in one process with one thread; transformers answers the first 64 questions, vLLM those and 1,000."""
    batch_lesson.prepare()
    with batch_lesson.quietly():
        few, many = batch_lesson.questions(64), batch_lesson.questions(1000, seed=1)
        transformers = batch_lesson.Transformers(threads=1)
        engine = InProcess.start(MODEL_DIR, ["--max-num-seqs", "64", "--no-enable-prefix-caching"])
    llm, prompts, ratios = engine.llm, [transformers.as_text(question) for question in many], []
    with TemporaryDirectory() as folder:
        requests = Path(folder) / "in.jsonl"
        greedy = {"temperature": 0, "max_tokens": batch_lesson.MAX_TOKENS}
        lines = [
            {"custom_id": str(i), "url": COMPLETIONS, "body": {"prompt": p, **greedy}} for i, p in enumerate(prompts)
        ]
        batch_lesson.write_jsonl(requests, lines)
        transformers.answer(few[:2]), batch_lesson.answer_with(llm, few)  # the first of each also pays for starting up
        for pair in range(pairs):
            slow, quick = transformers.answer(few), batch_lesson.answer_with(llm, few)
            assert slow.texts == quick.texts
            bare = batch_lesson.generate_with(llm, prompts)
            began = time.perf_counter()
            ours = batch.run(requests, requests.with_name(f"out-{pair}.jsonl"), engine)
            speed = ours.output_tokens / (time.perf_counter() - began)
            assert ours.output_tokens == sum(bare.tokens) and not ours.errors
            ratios.append((quick.tokens_per_second / slow.tokens_per_second, speed / bare.tokens_per_second))
            print(
                f"  tokens/s: transformers {slow.tokens_per_second:.0f}, vLLM {quick.tokens_per_second:.0f}; ", end=""
            )
            print(f"1,000: LLM.generate {bare.tokens_per_second:.0f}, helpers.batch {speed:.0f}", flush=True)
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    print(f"vLLM over transformers one by one: {medians[0]:.1f}; helpers.batch over LLM.generate: {medians[1]:.3f}")


def compare(title: str, one: Callable[[], float], other: Callable[[], float], pairs: int) -> None:
    times = [(one(), other()) for _ in range(pairs)]
    for mine, theirs in times:
        print(f"  {title}: {mine:.1f} s, bare {theirs:.1f} s, ratio {mine / theirs:.2f}", flush=True)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"{title}: median {medians[0]:.1f} s, bare {medians[1]:.1f} s, ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--setup", action="store_true", help="also compare the set-up: minutes for each pair")
    parser.add_argument("--slurm", action="store_true", help="also compare a Slurm job: as root, on the test cluster")
    parser.add_argument("--load", action="store_true", help="compare send_many with `vllm bench serve` instead")
    parser.add_argument(
        "--batch", action="store_true", help="compare offline batches with transformers and vLLM instead"
    )
    options = parser.parse_args()
    if options.batch:
        offline(options.pairs)
        sys.exit()
    if options.load:
        load(options.pairs)
        sys.exit()
    compare("server ready", ours, bare, options.pairs)
    if options.slurm:
        slurm(options.pairs)
    if options.setup:
        compare("set-up", our_setup, bare_setup, pairs=1)
