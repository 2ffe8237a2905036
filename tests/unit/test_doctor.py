"""The doctor: real logs (tests/unit/logs), texts that vLLM 0.32, PyTorch, NCCL and Slurm print, and what no log should do."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from helpers import log_lines
from helpers.causes import CAUSES
from helpers.doctor import SILENCE, NothingToReadError, diagnose, examine, judge, report
from helpers.log_lines import lines_of

ROOT = Path(__file__).parents[2]
LOGS = Path(__file__).parent / "logs"
ECHO = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
WORKER = "(Worker_TP0 pid=41) ERROR 11-21 15:04:15 [multiproc_executor.py:953] "

# --- every cause

#: A real log of our own -> its cause, and a piece of the line that proves it. The first line of each says how it was made.
REAL = {
    "heads-not-divisible": ("heads-not-divisible", "attention heads (8) must be divisible"),
    "unknown-flag": ("unknown-flag", "unrecognized arguments: --swap-space 4"),
    "flag-value": ("flag-value", "argument --dtype: invalid choice"),
    "model-not-found": ("model-not-found", "Repo id must be in the form"),
    "no-compiler": ("no-compiler", "No working C++ compiler found"),
    "no-weights": ("model-not-found", "Cannot find any model weights"),
    "model-offline": ("model-offline", "LocalEntryNotFoundError"),
    "damaged-model": ("damaged-model", "SafetensorError: Error while deserializing header"),
    "damaged-config": ("damaged-model", "JSONDecodeError"),
    "shard-missing": ("shard-missing", "Weight files referenced in index but missing"),
    "tokenizer-missing": ("tokenizer-missing", "Couldn't instantiate the backend tokenizer"),
    "unsupported-model": ("unsupported-model", "model type `deep_thought`"),
    "remote-code": ("remote-code", "contains custom code which must be executed"),
    "quantization-mismatch": ("quantization-mismatch", "no module or parameter named"),
    "max-model-len": ("max-model-len", "max_model_len (9999)"),
    "kv-cache-too-small": ("kv-cache-too-small", "estimated maximum model length is 384"),
    "cpu-binding": ("cpu-binding", "Not enough allowed NUMA nodes"),
    "cpu-pipeline-eager": ("cpu-pipeline-eager", "in sync_and_gather_intermediate_tensors"),
    "cpu-memory-in-use": ("cpu-memory-in-use", "less than requested memory for kv (4000.0 GiB)"),
    "out-of-memory": ("out-of-memory", "DefaultCPUAllocator: can't allocate memory"),
    "nodes-not-divisible": ("nodes-not-divisible", "`--nnodes 2` must evenly divide"),
    "ray-missing": ("ray-missing", "Failed to import Ray"),
    "port-taken": ("port-taken", "[Errno 98] Address already in use"),
    "too-many-files": ("too-many-files", "Too many open files"),
    "shared-memory-full": ("shared-memory-full", "Insufficient space in /dev/shm"),
    "disk-full": ("disk-full", "[Errno 28] No space left on device"),
    "worker-killed": ("process-died", "VllmWorker-1 died unexpectedly (exit code: None)"),
    "engine-killed": ("process-died", "engine core exited unexpectedly"),
    "engine-killed-at-start": ("engine-died", "Failed core proc(s): {}"),
}

#: What other programs print: cause, where that was read, the line.
SAID = [row.split("\t") for row in (LOGS / "said.tsv").read_text().splitlines() if not row.startswith("#")]


@pytest.mark.parametrize("log", REAL)
def test_a_real_log_is_read_right(log):
    cause, proof = REAL[log]
    text = (LOGS / f"{log}.log").read_text()
    found = judge(lines_of(text, f"{log}.log"))
    assert (found.cause, found.file) == (cause, f"{log}.log")
    assert proof in found.evidence
    assert proof in text.split("\n")[found.line - 1], "the line number leads to the evidence"
    assert not re.match(r"\(\w+ pid|ERROR|INFO|\d\d-\d\d", found.evidence), "prefixes are stripped"


@pytest.mark.parametrize(("cause", "source", "line"), SAID, ids=[f"{cause}-{n}" for n, (cause, *_) in enumerate(SAID)])
def test_what_programs_say_names_the_cause(cause, source, line):
    for text in (line, f"INFO 11-21 all is well\n{WORKER}{line}\nConnection reset by peer\n{ECHO}\n"):
        found = judge(lines_of(text, "rank-0.log"))
        assert found.cause == cause, (found, source)
        assert found.evidence.strip(" .") in line, "prefixes are stripped, nothing is added"
        assert "{" not in str(found).replace("{'", "") and ": ." not in str(found) and "  " not in str(found)


def test_every_fixture_is_used_and_says_how_it_was_made():
    assert {path.stem for path in LOGS.glob("*.log")} == set(REAL)
    for path in LOGS.rglob("*.log"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# vLLM 0.32.0 on a CPU: ") and len(lines) <= 200


def test_every_cause_is_hit_and_has_its_own_name_and_a_mend():
    names = [cause.name for cause in CAUSES]
    assert len(names) == len(set(names)) >= 18
    assert set(names) == {cause for cause, *_ in SAID} | {cause for cause, _ in REAL.values()}
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    for cause in CAUSES:
        assert cause.means[0].islower() or cause.means.startswith(("TP", "NCCL", "Slurm", "vLLM", "{", "your")), (
            cause.name
        )
        assert cause.mend[0].isupper() or cause.mend.startswith(("`", "{")), cause.name
        assert not cause.means.endswith(".") and not cause.mend.endswith("."), "the doctor sets the full stops"


@pytest.mark.parametrize(("cause", "source", "line"), SAID, ids=[f"{cause}-{n}" for n, (cause, *_) in enumerate(SAID)])
def test_our_own_sentence_in_the_launchers_log_is_not_taken_for_evidence_of_another_cause(cause, source, line):
    sentence = str(judge(lines_of(line, "log")))
    assert judge(lines_of(f"15:02:11 failed: {sentence}", "launcher.log")).cause in (cause, "launcher")
    outcome = f"failed: rank 1 on node2 ended with status 1 while starting: {sentence}"
    assert judge(lines_of(outcome, "outcome")).cause in (cause, "unknown")


# --- one sentence for a local server (helpers.keeper, helpers.client)


@pytest.mark.parametrize(
    ("log", "mend"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full. Free some space"),
        ("OSError: [Errno 98] Address already in use", "the port is taken"),
        (
            "ValueError: To serve at least one request with the models's max seq len (1048576), (4.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (1.0 GiB). Based on the available memory, the "
            "estimated maximum model length is 262144.",
            "1048576 tokens do not fit in the KV cache. Start with --max-model-len 262144",
        ),
        (
            "pydantic: Value error, User-specified max_model_len (9999) is greater than the derived max_model_len "
            "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json).",
            "reads at most 2048 tokens. Start with --max-model-len 2048 instead of 9999",
        ),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "ran out of memory"),
        ("terminate called after throwing 'std::bad_alloc'", "ran out of memory"),
        ("OSError: /data is not a local folder and is not a valid model identifier listed on ...", "not found"),
        ("usage: vllm ...\nvllm: error: unrecognized arguments: --swap-space 4", "does not know --swap-space 4"),
        ("json.decoder.JSONDecodeError: Expecting value: line 1 column 1", "a file of the model is damaged"),
        ("RuntimeError: Cannot find any model weights with `/data/x`", "holds config.json and the weights"),
        (ECHO.replace("1}", "-9}"), "engine was killed"),
    ],
)
def test_diagnose_says_the_cause_with_the_mend_in_one_line(log, mend):
    surrounded = f"INFO all is well\n{log}\nRuntimeError: Engine core initialization failed. See root cause above.\n"
    assert mend in diagnose(surrounded, 1)
    assert "\n" not in diagnose(surrounded, 1)


@pytest.mark.parametrize(
    ("returncode", "mend"), [(-9, "it was killed"), (-4, "lacks an instruction"), (-11, "crashed"), (-7, "/dev/shm")]
)
def test_a_log_that_says_nothing_leaves_the_exit_code(returncode, mend):
    assert mend in diagnose("INFO all is well\n", returncode)
    assert "disk is full" in diagnose("No space left on device\n", returncode), "the log knows better"


def test_an_unknown_error_is_quoted_and_an_unknown_cause_called_so():
    assert diagnose("x ValueError: first\ny KeyError: 'last'\nbye", 1) == "vLLM said: KeyError: 'last'"
    echo = "Exception: WorkerProc failed. See stack trace for root cause.\n" + ECHO
    assert diagnose(f"{WORKER}ValueError: odd\n{echo}", 1).endswith("odd")
    assert "the cause is unknown" in diagnose("", 1)


@pytest.mark.parametrize(
    "line",
    [
        "INFO error_handler=None, enable_error_log=False",
        "WARNING Found ulimit of 20000: `OSError: [Errno 24] Too many open files` may come",
        "(APIServer pid=9) INFO 11-21 15:04:12 [x.py:1] args: {'swap': 'No space left on device'}",
        "node1:9:12 [0] NCCL INFO Call to connect returned Connection refused, retrying",
        "[W1121 15:04:12.1 socket.cpp:464] [c10d] The server socket has failed to bind to [::]:29500 (Address already in use)",
        '    raise ValueError("No available memory for the cache blocks")',
        'INFO:     127.0.0.1:5 - "POST /v1/completions HTTP/1.1" 401 Unauthorized',
    ],
)
def test_information_warnings_and_source_code_name_no_cause(line):
    assert judge(lines_of(line, "log")).cause == "unknown"
    assert "unknown" in diagnose(line, 1)


# --- a job's folder: two ranks, the launcher, Slurm


def job(folder: Path, **logs: str) -> Path:
    """A job's folder; rank_0 becomes rank-0.log."""
    folder.mkdir(exist_ok=True)
    for name, text in logs.items():
        (folder / (name if name == "outcome" else f"{name.replace('_', '-')}.log")).write_text(text)
    return folder


FAILED = "15:02:11 rank 0 on node1 ended with status 1 while starting; its log: rank-0.log\n"


@pytest.mark.parametrize(
    ("folder", "cause", "where"),
    [
        ("job-worker-killed", "process-died", "rank-1.log"),  # rank 0 only says: Connection closed by peer
        ("job-wrong-interface", "wrong-interface", "rank-1.log"),  # rank 0 waits in silence
        ("job-rank-1-missing", "rendezvous-timeout", "rank-0.log"),
        ("job-rank-0-unreachable", "rendezvous-timeout", "rank-1.log"),
        ("job-master-port-taken", "port-taken", "rank-0.log"),
    ],
)
def test_real_logs_of_several_ranks(tmp_path, folder, cause, where):
    logs = {path.stem.replace("-", "_"): path.read_text() for path in (LOGS / folder).glob("rank-*.log")}
    found = examine(job(tmp_path, **logs, launcher=FAILED))
    assert (found.cause, found.file) == (cause, where)


@pytest.mark.parametrize("cause_in", ["rank_0", "rank_1"])
def test_the_root_cause_wins_over_its_echo_on_another_rank(tmp_path, cause_in):
    echo = f"{WORKER}RuntimeError: Connection closed by peer [10.0.0.7]:41870\n{ECHO}\n"
    echo += "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /x\n"
    logs = {
        "rank_0": echo,
        "rank_1": echo,
        cause_in: f"INFO\n{WORKER}torch.OutOfMemoryError: CUDA out of memory. Tried\n{ECHO}",
    }
    found = examine(job(tmp_path, **logs, launcher=FAILED))
    assert (found.cause, found.where) == ("gpu-out-of-memory", f"{cause_in.replace('_', '-')}.log:2")


def test_an_unexplained_error_is_not_hidden_behind_the_echo_of_another_rank(tmp_path):
    folder = job(
        tmp_path, rank_0="RuntimeError: Connection closed by peer\n", rank_1=f"KeyError: 'odd'\n{ECHO}", launcher=FAILED
    )
    found = examine(folder)
    assert (found.cause, found.evidence, found.file) == ("unknown", "KeyError: 'odd'", "rank-1.log")


def test_among_equals_the_first_line_of_the_first_rank_is_the_evidence(tmp_path):
    text = "INFO\nOSError: [Errno 28] No space left on device: a\nOSError: [Errno 28] No space left on device: b\n"
    found = examine(job(tmp_path, rank_10=text, rank_2=text, launcher=FAILED))
    assert (found.where, found.evidence[-1]) == ("rank-2.log:2", "a")


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("TIMEOUT", "time-limit"),
        ("OUT_OF_MEMORY", "slurm-out-of-memory"),
        ("NODE_FAIL NodeDown", "node-failure"),
        ("PREEMPTED", "preempted"),
        ("CANCELLED by 1000", "cancelled"),
        ("JobState=TIMEOUT Reason=TimeLimit Dependency=(null)", "time-limit"),
        ("PENDING (Resources)", "pending"),
    ],
)
def test_what_slurm_calls_the_job_counts(tmp_path, state, cause):
    found = examine(job(tmp_path, rank_0="INFO all is well\n"), state=state)
    assert found.cause == cause
    assert examine(tmp_path / "never-started", state=state).cause == cause, "also when the job left no folder"


def test_slurms_own_log_is_found_beside_the_jobs_or_where_one_says(tmp_path):
    folder = tmp_path / "jobs" / "29"
    folder.parent.mkdir()
    job(folder, rank_0="INFO all is well\n", launcher=FAILED)
    killed = "slurmstepd: error: *** JOB 29 ON node1 CANCELLED AT 2026-11-21T14:53:02 DUE TO TIME LIMIT ***\n"
    (tmp_path / "mine.log").write_text(killed)
    assert examine(folder, slurm_log=tmp_path / "mine.log").cause == "time-limit"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "llama-29.log").write_text(killed)
    assert examine(folder).file == "llama-29.log"


def test_time_limit_and_memory_stand_above_the_noise_of_being_ended(tmp_path):
    noise = "WARNING [shutdown] MPClient: engine core exited unexpectedly; starting cleanup\nsrun: error: node1: task 0: Killed\n"
    assert examine(job(tmp_path, rank_0=noise, outcome="cancelled: Slurm ended the job\n")).cause == "cancelled"
    assert examine(tmp_path, state="OUT_OF_MEMORY").cause == "slurm-out-of-memory"
    assert examine(job(tmp_path, outcome="finished: stopped before the time limit\n")).cause == "finished"


def test_a_launchers_sentence_that_no_cause_knows_is_passed_on(tmp_path):
    found = examine(
        job(
            tmp_path,
            launcher="15:02:11 failed: The moon is full. Wait a week.\n",
            outcome="failed: The moon is full. Wait a week.\n",
        )
    )
    assert (found.cause, found.sentence, found.mend) == ("launcher", "The moon is full", "Wait a week.")
    assert str(found) == "The moon is full. Wait a week."
    rank = "failed: rank 0 on node1 ended with status 1 while starting.\n"
    assert examine(job(tmp_path, launcher=FAILED + rank, outcome=rank, rank_0="bye\n")).cause == "unknown"


def test_tcp_instead_of_infiniband_is_a_note():
    lines = "node1:9:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] [send] via NET/Socket/0\nRuntimeError: No CUDA GPUs are available\n"
    found = judge(lines_of(lines, "log"))
    assert found.cause == "no-gpu" and "InfiniBand" in found.notes[0]
    assert not judge(lines_of("NCCL INFO Using network IB\nx", "log")).notes


# --- neither ready nor dead

WAITS = "INFO Initializing a V1 LLM engine\nINFO world_size=2 rank=0 local_rank=0 distributed_init_method=tcp://10.0.0.7:29500\n"
LOADS = WAITS + "INFO Starting to load model llama\n"


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "words"),
    [
        (WAITS, "", "rank 1 never logged a line"),
        (WAITS, WAITS, "every rank stopped at waiting for the other ranks"),
        (WAITS, "INFO hello\n", "rank 1 is behind (starting Python)"),
        (LOADS, LOADS, "every rank stopped at loading weights"),
    ],
)
def test_a_stuck_start_names_the_rank_that_the_others_wait_for(tmp_path, rank_0, rank_1, words):
    folder = job(tmp_path, rank_0=rank_0, rank_1=rank_1, launcher="15:00:00 starting llama on node1 node2\n")
    assert examine(folder).cause == "starting", "a moment's silence is no illness"
    for path in folder.iterdir():
        os.utime(path, (time.time() - 2 * SILENCE,) * 2)
    found = examine(folder, state="RUNNING")
    assert found.cause == "stuck" and words in found.sentence and found.mend
    assert examine(folder, running_for=10).cause == "starting", "the job has only begun"
    assert examine(folder, state="FAILED NonZeroExitCode").cause == "unknown", "it is over: nothing is stuck"


def test_a_server_that_is_ready_is_not_ill(tmp_path):
    folder = job(tmp_path, rank_0=LOADS, launcher="15:00:00 starting llama on node1\n15:01:00 ready: llama answers\n")
    assert examine(folder, state="RUNNING").cause == "serving"
    assert examine(folder, state="NODE_FAIL").cause == "node-failure"


# --- logs that bite


def test_a_long_log_is_read_at_both_ends_only(tmp_path, monkeypatch):
    monkeypatch.setattr(log_lines, "HEAD", 1000)
    monkeypatch.setattr(log_lines, "TAIL", 1000)
    for hidden, at in ((0, "rank-0.log:2"), (4999, "rank-0.log, line 1 from its end"), (2500, "")):
        rows = [f"line {n}" for n in range(5000)]
        rows.insert(hidden + 1, "OSError: [Errno 28] No space left on device")
        found = examine(job(tmp_path, rank_0="\n".join(rows) + "\n", launcher=FAILED))
        assert found.where == at or (not at and found.cause == "unknown")
        assert "only its first" in found.notes[0]


def test_half_a_gigabyte_takes_seconds(tmp_path):
    with (tmp_path / "big.log").open("wb") as log:
        log.write(b"(Worker pid=3) ERROR 11-21 15:04:15 [x.py:9] strange things happen here, over and over\n" * 60_000)
        log.seek(500 << 20)  # a sparse file: half a gigabyte of zeros
        log.write(b"\nOSError: [Errno 28] No space left on device\n")
    started = time.monotonic()
    lines, _ = log_lines.read_files([tmp_path / "big.log"])
    assert judge(lines["big.log"]).cause == "disk-full"
    assert time.monotonic() - started < 10


def test_junk_colours_and_endless_lines_do_no_harm(tmp_path):
    junk = bytes(range(256)) * 500 + b"\n"
    coloured = b"\x1b[0;36m(EngineCore pid=132)\x1b[0;0m \x1b[31mERROR\x1b[0m 11-21 15:04:15 [core.py:1510] OSError: [Errno 28] No space left on device\r\n"
    bar = b"Loading shards:  0%\rLoading shards: 50%\rLoading shards: 100%\n"
    (tmp_path / "rank-0.log").write_bytes(junk + bar + b"x" * 3_000_000 + b"\n" + coloured + junk)
    (tmp_path / "launcher.log").write_text(FAILED)
    found = examine(tmp_path)
    assert (found.cause, found.evidence) == ("disk-full", "OSError: [Errno 28] No space left on device")
    (tmp_path / "rank-0.log").write_bytes(junk + b"odd ValueError: " + b"y" * 9000 + b"\n")
    found = examine(tmp_path)
    assert found.cause == "unknown" and len(found.evidence) < 600 and found.evidence.isprintable()


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(NothingToReadError, match=r"holds no rank-N\.log.*Name a job's folder"):
        examine(tmp_path)
    (tmp_path / "rank-0.log").mkdir()
    with pytest.raises(NothingToReadError, match="rank-0.log cannot be read: Is a directory"):
        examine(tmp_path)
    found = examine(job(tmp_path, rank_1="RuntimeError: No CUDA GPUs are available\n", launcher=FAILED))
    assert found.cause == "no-gpu" and "rank-0.log cannot be read" in found.notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_log_without_permission_is_said(tmp_path):
    job(tmp_path, rank_0="x\n").joinpath("rank-0.log").chmod(0)
    with pytest.raises(NothingToReadError, match="Permission denied"):
        examine(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: header Authorization: Bearer SECRET-value",
        "ValueError: {'api_key': ['SECRET', 'SECRET2'], 'port': 1}",
        "vllm: error: unrecognized arguments: --foo --api-key SECRET",
        "vllm: error: unrecognized arguments: --foo --api-key=SECRET",
        "ValueError: VLLM_API_KEY=SECRET and HF_TOKEN=SECRET",
        "ValueError: token hf_SECRETabcdefgh is not valid",
        "failed: The key is Bearer SECRET. Tell nobody.",
    ],
)
def test_no_key_is_ever_shown(tmp_path, line):
    found = examine(job(tmp_path, rank_0=line, launcher=FAILED))
    everything = report(found) + json.dumps(asdict(found)) + repr(found) + str(found)
    assert "SECRET" not in everything + diagnose(line)
    assert "***" in everything


# --- the command


def run(*arguments, text: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "helpers.doctor", *map(str, arguments)],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
    )


def test_the_command_tells_cause_evidence_and_mend(tmp_path):
    log = LOGS / "heads-not-divisible.log"
    full = run(log)
    assert full.returncode == 0
    assert re.search(r"^cause +heads-not-divisible\n.*TP3 does not divide the model's 8 attention heads", full.stdout)
    assert re.search(r"^evidence +heads-not-divisible.log:\d+\n +Value error, Total number", full.stdout, re.MULTILINE)
    assert "mend      Choose a TP that divides 8" in full.stdout
    brief = run("--brief", log)
    assert (brief.returncode, brief.stdout) == (
        0,
        "TP3 does not divide the model's 8 attention heads. Choose a TP that divides 8.\n",
    )
    told = json.loads(run("--json", "-", text=log.read_text()).stdout)
    assert (told["cause"], told["file"]) == ("heads-not-divisible", "stdin")


def test_the_commands_exit_status_is_for_scripts(tmp_path):
    unknown = job(tmp_path / "unknown", rank_0="odd KeyError: 'x'\nodd KeyError: 'y'\n", launcher=FAILED)
    full, brief = run(unknown), run("--brief", unknown)
    assert full.returncode == brief.returncode == 1
    assert "unknown" in full.stdout and "rank-0.log:1" in full.stdout and "rank-0.log:2" in full.stdout
    assert brief.stdout == "" and brief.stderr == "vLLM said: KeyError: 'y'.\n"
    for nothing in (tmp_path, tmp_path / "absent"):
        told = run(nothing)
        assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1)
        assert told.stderr.startswith("Nothing to read in") and "Traceback" not in told.stderr
    assert run("-", text="").returncode == 2


def test_it_runs_without_any_installed_package(tmp_path):
    program = (
        "import sys; sys.argv = ['doctor', '--brief', sys.argv[1]]; import helpers.doctor as d; sys.exit(d.main())"
    )
    told = subprocess.run([sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}", LOGS / "port-taken.log"], capture_output=True, text=True)  # fmt: skip
    assert (told.returncode, told.stdout[:17]) == (0, "the port is taken"), told.stderr
