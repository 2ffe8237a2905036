"""What a rehearsal makes of its runs: the verdict and its reasons."""

import json
from array import array

import pytest

from helpers.load_records import LoadError, Record, Run
from helpers.participants import CHATTING, TOGETHER, Limits, Report, _against, rehearse, show


def phase(*ttfts: float, tpot: float = 0.05, failed: int = 0) -> Run:
    records = [Record(i, 0, 0, t, t + 10 * tpot, array("d", [tpot] * 10), 5, 11, "stop") for i, t in enumerate(ttfts)]
    records += [Record(0, e2e=0.1, error="Nothing answers.") for _ in range(failed)]
    return Run(records, 60, 4, len(records), failed)


def verdict(chatting: Run, together: Run, limits: Limits | None = None) -> Report:
    phases, limits = {CHATTING: chatting, TOGETHER: together}, limits or Limits()
    peak = {"running": 7, "waiting": 3, "kv_usage": 0.25, "preemptions": 0}
    return Report(phases, limits, peak, _against(phases, limits))


def test_a_class_within_all_limits_is_go(capsys):
    report = verdict(phase(*[0.5] * 20), phase(*[6] * 20))
    assert report.go and report.reasons == []
    show(report)
    said = capsys.readouterr().out
    assert "GO: no question failed" in said and "7 requests running and 3 waiting, 25% of its KV cache" in said


@pytest.mark.parametrize(
    ("chatting", "together", "reason"),
    [
        (phase(*[0.5] * 20, failed=1), phase(0.5), "1 of 21 questions failed (chatting): Nothing answers."),
        (phase(0.5), phase(failed=3), "3 of 3 questions failed (all at once): Nothing answers."),
        (
            phase(*[0.5] * 18, 2.5, 2.5),
            phase(0.5),
            "longer than 2.5 s for an answer to begin (chatting); the limit is 2 s.",
        ),
        (phase(0.5), phase(*[12] * 9), "longer than 12.0 s for an answer to begin (all at once); the limit is 10 s."),
        (phase(0.5, tpot=0.3), phase(0.5), "a token each 0.30 s or slower (chatting); the limit is 0.19 s."),
        (phase(), phase(0.5), "nobody asked anything (chatting)"),
    ],
)
def test_each_reason_against_is_a_sentence(chatting, together, reason, capsys):
    report = verdict(chatting, together)
    assert not report.go and len(report.reasons) == 1 and reason in report.reasons[0]
    show(report)
    assert f"NO-GO: {report.reasons[0]}" in capsys.readouterr().out


def test_one_slow_answer_in_many_is_no_reason():
    assert verdict(phase(*[0.5] * 99, 30), phase(0.5)).go


def test_the_report_is_json_without_holes(capsys):
    report = verdict(phase(*[0.5] * 20), phase(failed=2))
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert data["phases"][CHATTING] == {
        "questions": 20, "failed": 0, "causes": [],
        "ttft": {"p50": 0.5, "p95": 0.5, "p99": 0.5}, "tpot": {"p50": 0.05, "p95": 0.05, "p99": 0.05},
    }  # fmt: skip
    assert data["phases"][TOGETHER] == {"questions": 2, "failed": 2, "causes": ["Nothing answers."]}
    assert data["server"]["waiting"] == 3 and data["limits"]["tpot"] == 0.19
    report.peak = None
    show(report)
    assert "shows no metrics" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"participants": 0}, {"think_time": 0}, {"duration": -1}, {"max_tokens": 0}])
def test_a_class_of_nobody_is_refused(wrong):
    with pytest.raises(LoadError, match="more than 0"):
        rehearse(None, **{"participants": 2, "think_time": 1, "duration": 1} | wrong)
