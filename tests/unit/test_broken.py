"""The recorded logs of lesson 09, the parts of a log that it shows, and its pictures."""

import re

import pytest

from helpers import broken, broken_plots
from helpers.broken import RECORDED, Log

LOGS = sorted(path.stem for path in RECORDED.glob("*.log"))
JOBS = sorted(path.name for path in RECORDED.iterdir() if path.is_dir())
CAUSES = {
    "qwen-tp16": "heads-not-divisible", "damaged": "damaged-model", "no-such-path": "model-not-found",
    "port-taken": "port-taken", "gpu-weights": "gpu-out-of-memory", "gpu-no-cache": "no-kv-cache",
    "gpu-short-cache": "kv-cache-too-small", "gpu-in-use": "gpu-in-use",
}  # fmt: skip
JOB_CAUSES = {
    "wrong-interface": "wrong-interface", "dead-worker": "killed", "expired": "time-limit", "node-failure": "node-failure",
}  # fmt: skip
TEXT = """\
(APIServer pid=1) WARNING 11-21 15:00:01 [a.py:1] Found ulimit of 5: `OSError: [Errno 24] Too many open files` may come
(EngineCore pid=2) INFO 11-21 15:00:02 [b.py:2] Initializing a V1 LLM engine with config
(Worker pid=3) ERROR 11-21 15:00:03 [c.py:3] Traceback (most recent call last):
(Worker pid=3) ERROR 11-21 15:00:03 [c.py:3]   File "/x/site-packages/vllm/c.py", line 9, in load
(Worker pid=3) ERROR 11-21 15:00:03 [c.py:3] OSError: [Errno 28] No space left on device
Loading:  0%\rLoading: 100%
Traceback (most recent call last):
  raise RuntimeError
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize("name", LOGS)
def test_a_recorded_log_is_the_failure_it_is_kept_for(name):
    log = broken.recorded(name)
    if name in CAUSES:
        assert log.diagnosis.cause == CAUSES[name]
        assert log.errors().rows
    else:
        assert name.startswith("nccl-") and "Application startup complete" in log.text


@pytest.mark.parametrize("name", JOBS)
def test_a_recorded_job_is_the_failure_it_is_kept_for(name):
    job = broken.job(name)
    assert job.diagnosis.cause == JOB_CAUSES[name]
    assert {"launcher.log", "rank-0.log", "slurm.log"} <= set(job.logs)


def test_the_readme_says_of_every_log_how_it_was_made():
    listed = set(re.findall(r"^\| `([\w.-]+)` \|", (RECORDED / "README.md").read_text(), re.MULTILINE))
    assert listed == {f"{name}.log" for name in LOGS} | set(JOBS)
    assert set(CAUSES) | {"nccl-direct", "nccl-tcp"} == set(LOGS) and set(JOB_CAUSES) == set(JOBS)


def test_recorded_logs_tell_nothing_about_where_they_were_made():
    for path in RECORDED.rglob("*"):
        if path.is_file():
            assert not re.search(
                r"/work/|/root/|/tmp/w|hf_[A-Za-z0-9]{12}|Bearer|api_key'?: \['?\w", path.read_text()
            ), path


def test_parts_of_a_log():
    log = Log("x.log", TEXT)
    assert [row.line.number for row in log.errors().rows] == [5, 9]
    assert [row.kind for row in log.rows] == [
        "warning",
        "info",
        "error",
        "error",
        "error",
        "info",
        "error",
        "error",
        "error",
    ]
    assert [row.process for row in log.rows[:5]] == ["APIServer", "EngineCore", "Worker", "Worker", "Worker"]
    assert repr(log.tail(1)).startswith("   9  RuntimeError: Engine core initialization failed.")
    second = repr(log.lines(2, 3)).split("\n")[1]
    assert second.startswith("   3  Worker      ERROR  Traceback"), "columns as wide as needed"
    assert "…/vllm/c.py" in repr(log.lines(4, 4))
    assert [row.line.number for row in log.grep("Traceback", most=1).rows] == [3]
    assert repr(log.grep("no such words")) == "(no such line)"
    assert "Loading: 100%" in repr(log.lines(6, 6)), "a carriage return begins no line"


def test_a_live_log_has_no_line_numbers(capsys):
    log = Log("log", TEXT, live=True)
    assert repr(log.errors()).startswith("Worker  ERROR  OSError")
    log.doctor()
    told = capsys.readouterr().out
    assert "disk-full" in told and "No space left" in told and "log:" not in told
    Log("x.log", TEXT).doctor()
    assert "x.log:5" in capsys.readouterr().out


def test_colours_hide_no_process():
    coloured = Log("log", "\x1b[0;36m(EngineCore pid=2)\x1b[0;0m \x1b[31mERROR\x1b[0m 11-21 15:00:03 [c.py:3] odd\n")
    assert (coloured.rows[0].process, coloured.rows[0].level, coloured.rows[0].time) == (
        "EngineCore",
        "ERROR",
        "15:00:03",
    )


def test_no_markup_gets_through_and_no_key():
    shown = Log("x", "ValueError: <script> Authorization: Bearer SECRET-key\n").errors()
    assert "<script>" not in shown._repr_html_() and "SECRET" not in shown._repr_html_() + repr(shown)


def stops_at(log: Log) -> str:
    axis = broken_plots.how_far({"it": log}).axes[0]
    cross = axis.collections[-1].get_offsets()[0][0]
    return axis.get_xticklabels()[round(cross)].get_text()


@pytest.mark.parametrize(
    ("name", "step"),
    [("qwen-tp16", "settings"), ("damaged", "weights"), ("gpu-weights", "weights"), ("gpu-no-cache", "cache")],
)
def test_how_far_it_came(name, step):
    assert stops_at(broken.recorded(name)) == step


def test_the_cause_gets_the_star():
    figure = broken_plots.glance(broken.recorded("damaged"))
    star = figure.axes[0].collections[-1].get_offsets()
    assert star.shape == (1, 2) and star[0][0] == broken.recorded("damaged").diagnosis.line
    clock = broken_plots.clock(broken.job("wrong-interface")).axes[0]
    place = clock.collections[-1].get_offsets()[0][1]
    assert clock.get_yticklabels()[round(place)].get_text() == "rank-1.log"


def test_one_port_has_one_listener():
    program = broken.listening(0)
    try:
        assert broken.listening(program.getsockname()[1]) is None
    finally:
        program.close()


def test_the_cut_copy_is_damaged_and_the_model_is_not():
    from helpers import checkpoint
    from helpers.tiny import MODEL_DIR

    assert "truncated" in checkpoint.problems(broken.cut_short())[0]
    assert checkpoint.problems(MODEL_DIR) == []


def test_without_leave_nothing_is_submitted(capsys):
    broken.on_slurm(False, TP="3")
    assert "--set TP=3" in capsys.readouterr().out
