"""What lesson 06 and lab 2 compute and draw, apart from the engines themselves."""

import json

import pytest

from helpers import batch_lesson, batch_plots
from helpers.batch_files import Input, Request
from helpers.batch_lesson import Timed, as_requests, questions, useful_share


def test_questions_are_the_same_every_time_and_of_unequal_lengths():
    asked = questions(60)
    assert asked == questions(60) != questions(60, seed=1)
    assert sum(question.startswith("Count from 1 to ") for question in asked) == 20


def test_requests_are_in_the_batch_format(tmp_path):
    path = tmp_path / "in.jsonl"
    batch_lesson.write_jsonl(path, as_requests(questions(5), max_tokens=9))
    items = list(Input(path).read())
    assert all(isinstance(item, Request) for item in items)
    assert items[4].custom_id == "q5" and items[4].body["max_tokens"] == 9


def test_fixed_batches_wait_for_their_longest_answer():
    assert useful_share([3, 40, 12, 85], 4) == 140 / 340
    assert useful_share([5] * 8, 3) == 1
    assert useful_share([3, 40, 12, 85], 1) == 1


def timed(name, seconds):
    return Timed(name, ["a"] * 4, [3, 40, 12, 85], seconds)


def test_pictures_say_in_words_what_they_show():
    figure = batch_plots.speeds([timed("one by one", 14), timed("vLLM", 1.4)])
    assert figure.get_label() == "Output tokens per second. one by one: 10; vLLM: 100."
    assert [text.get_text() for text in figure.axes[0].texts] == [" 10  (1.0×)", " 100  (10.0×)"]
    assert "41%" in batch_plots.fixed_batches([3, 40, 12, 85], 4).get_label()
    figure = batch_plots.tuning({1: timed("x", 14), 8: timed("x", 2)}, {16: timed("x", 7), 64: timed("x", 2)})
    assert figure.get_label().startswith("From max_num_seqs 1 to 8: 10 to 70 tokens per second. From max_num_batched")


def test_quietly_hides_stderr_and_not_exceptions(capfd):
    import os
    import sys

    with pytest.raises(ValueError, match="seen"), batch_lesson.quietly():
        print("hidden", file=sys.stderr)
        os.write(2, b"hidden too\n")
        raise ValueError("seen")
    print("back", file=sys.stderr)
    assert capfd.readouterr().err == "back\n"


def test_the_speed_that_exercise_1_names_is_the_measured_one():
    rows = json.loads((batch_lesson.TOPICS.parents[1] / "data" / "h200x4.json").read_text())["throughput"]
    (row,) = [row for row in rows if row["run"] == "8b_tp1" and row["max_concurrency"] == 64]
    assert round(row["output_throughput"]) == 5387
