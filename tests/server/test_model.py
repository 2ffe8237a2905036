"""The served small Llama keeps the promises of its corpus."""

import pytest

from helpers.client import connect
from helpers.tiny import MODEL_NAME, corpus, evaluate


@pytest.fixture(scope="module")
def client(live_server):
    return connect(quiet=True)


def test_served_odds_are_the_odds_of_the_corpus(client):
    """Total variation distance between exp(logprob) and the stated odds, one by one."""
    found = evaluate.distances(client, MODEL_NAME)
    worst = max(found, key=found.get)
    print(
        f"{len(found)} distributions, mean {sum(found.values()) / len(found):.4f}, worst {found[worst]:.4f} ({worst})"
    )
    assert len(found) >= 20
    assert {start: distance for start, distance in found.items() if distance > 0.03} == {}


def test_distance_counts_what_is_wrong():
    assert evaluate.total_variation({" a": 0.5, " b": 0.5}, {"a": 0.5, "b": 0.5}) == 0
    assert evaluate.total_variation({" a": 0.8, " b": 0.2}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.3)
    assert evaluate.total_variation({" a": 0.5, " x": 0.5}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.5)
    assert evaluate.total_variation({"a": 1}, {"a": 1}) == 1, "the word comes with its space"


def test_questions_not_seen_in_training_are_answered(client):
    asked = corpus.held_out_questions()
    missed = evaluate.wrong_answers(client, MODEL_NAME, asked)
    print(f"{len(asked) - len(missed)} of {len(asked)} right", *missed, sep="\n")
    assert len(asked) == 100 and len(missed) <= 5


def test_questions_from_outside_get_the_modest_answer(client):
    asked = corpus.off_topic_questions()
    missed = evaluate.wrong_answers(client, MODEL_NAME, asked)
    print(f"{len(asked) - len(missed)} of {len(asked)} declined", *missed, sep="\n")
    assert len(missed) <= 5, "no promise is made here; most of them should be declined"
