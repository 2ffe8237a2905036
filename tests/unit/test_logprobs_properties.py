"""Tables of responses made by the rule that vLLM follows, from a whole distribution that the test knows.

The rule (v1/sample/sampler.py, entrypoints/openai): the chosen token first, then the k most probable; a token that is
among those stands once. Chat cuts the list to k. `prompt_logprobs` adds ranks.
"""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.logprobs import chat_table, chosen, completion_table, odds_at, perplexity, prompt_table


@st.composite
def texts(draw):
    """(logprobs of the whole vocabulary at each position, the chosen ids, k)."""
    size, length = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    logits = draw(
        st.lists(st.lists(st.integers(-40, 40), min_size=size, max_size=size), min_size=length, max_size=length)
    )
    logits = np.array(logits) / 4  # ties do happen, as they do with bfloat16
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = draw(st.lists(st.integers(0, size - 1), min_size=length, max_size=length))
    return logprobs, ids, draw(st.integers(0, size))


def named(row, number, k):
    """The ids that the server names at one position, in its order."""
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    return [number, *(i for i in best if i != number)]


def as_completion(logprobs, ids, k, in_ids=False):
    token = (lambda i: f"token_id:{i}") if in_ids else (lambda i: f" t{i}")
    tops = [{token(i): float(row[i]) for i in named(row, number, k)} for row, number in zip(logprobs, ids, strict=True)]
    said = {
        "tokens": [token(i) for i in ids],
        "token_logprobs": [float(row[i]) for row, i in zip(logprobs, ids, strict=True)],
        "top_logprobs": tops,
        "text_offset": [0] * len(ids),
    }
    return {"choices": [{"text": "".join(f" t{i}" for i in ids), "logprobs": said}]}


def as_chat(logprobs, ids, k):
    def item(row, i):
        return {"token": f" t{i}", "logprob": float(row[i]), "bytes": list(f" t{i}".encode())}

    content = [
        {**item(row, number), "top_logprobs": [item(row, i) for i in named(row, number, k)[:k]]}
        for row, number in zip(logprobs, ids, strict=True)
    ]
    return {"choices": [{"message": {"content": "".join(f" t{i}" for i in ids)}, "logprobs": {"content": content}}]}


def as_prompt(logprobs, ids, k):
    found = [None]
    for row, number in zip(logprobs, ids, strict=True):
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        ranks = {number: int((row >= row[number]).sum()), **{i: rank for rank, i in enumerate(best, 1)}}
        found.append(
            {str(i): {"logprob": float(row[i]), "rank": r, "decoded_token": f" t{i}"} for i, r in ranks.items()}
        )
    return {"choices": [{"prompt_logprobs": found, "prompt_token_ids": [99, *ids]}]}


FORMS = [
    (lambda *t: completion_table(as_completion(*t)), 0),
    (lambda *t: completion_table(as_completion(*t), k=t[2]), 0),
    (lambda *t: completion_table(as_completion(*t, in_ids=True), k=t[2]), 0),
    (lambda *t: chat_table(as_chat(*t)), 0),
    (lambda *t: prompt_table(as_prompt(*t), prompt="".join(f" t{i}" for i in t[1])), 1),
]
each_form = pytest.mark.parametrize("table, first", FORMS, ids=["completion", "with k", "ids", "chat", "prompt"])


def number_of(row):
    return int(row.id) if not pd.isna(row.id) else int(row.token.strip(" t"))


@each_form
@settings(max_examples=60, deadline=None)
@given(texts())
def test_a_table_is_tidy(table, first, text):
    logprobs, ids, _ = text
    found = table(*text)
    standing = chosen(found)
    assert standing["position"].tolist() == list(range(len(ids) + first))
    assert [number_of(row) for row in standing.iloc[first:].itertuples()] == ids
    scored = found.iloc[first:]
    assert np.allclose(scored["probability"], np.exp(scored["logprob"]), rtol=1e-12)
    sums = scored.groupby("position")["probability"].sum()
    assert (scored["probability"] <= 1 + 1e-12).all() and (sums <= 1 + 1e-9).all()
    assert (
        not scored.assign(number=[number_of(r) for r in scored.itertuples()]).duplicated(["position", "number"]).any()
    )
    best_first = scored.groupby("position")["logprob"].apply(lambda column: column.is_monotonic_decreasing)
    assert best_first.all()
    for row in scored.itertuples():
        assert row.logprob == logprobs[row.position - first][number_of(row)], row


@each_form
@settings(max_examples=60, deadline=None)
@given(texts())
def test_a_rank_that_is_given_is_true(table, first, text):
    logprobs, _, k = text
    for row in table(*text).iloc[first:].itertuples():
        truth = logprobs[row.position - first]
        value = truth[number_of(row)]
        better, as_good = int((truth > value).sum()) + 1, int((truth >= value).sum())
        if not pd.isna(row.rank):
            assert better <= row.rank <= as_good  # among equals any place is true
        if not pd.isna(row.most_probable):
            assert row.most_probable == (row.rank == 1 if not pd.isna(row.rank) else False)
            assert not row.most_probable or value == truth.max()
            assert row.most_probable or row.rank is pd.NA or value < truth.max() or (k == 0 and as_good > 1)


@settings(max_examples=60, deadline=None)
@given(texts())
def test_with_k_only_ranks_below_k_are_unknown(text):
    logprobs, _, k = text
    for row in completion_table(as_completion(*text), k=k).itertuples():
        truth = logprobs[row.position]
        if (truth > truth[number_of(row)]).sum() < k:
            assert not pd.isna(row.rank)
    assert not prompt_table(as_prompt(*text)).iloc[1:]["rank"].isna().any()


@settings(max_examples=60, deadline=None)
@given(texts())
def test_offsets_point_at_the_tokens(text):
    whole = "".join(f" t{i}" for i in text[1])
    for table in (completion_table(as_completion(*text)), chat_table(as_chat(*text))):
        for row in chosen(table).itertuples():
            assert whole[row.offset :].startswith(row.token)
    starts = prompt_table(as_prompt(*text), prompt=whole)
    assert chosen(starts)["offset"].tolist() == [0, *chosen(completion_table(as_completion(*text)))["offset"]]


@settings(max_examples=60, deadline=None)
@given(texts())
def test_perplexity_is_the_inverse_geometric_mean(text):
    logprobs, ids, _ = text
    found = perplexity(prompt_table(as_prompt(*text)))
    product = math.prod(math.exp(row[i]) for row, i in zip(logprobs, ids, strict=True))
    assert found.tokens == len(ids)
    assert found.value == pytest.approx(product ** (-1 / len(ids)), rel=1e-9)
    assert found.value >= 1 and found.nats == pytest.approx(len(ids) * found.per_token)


@settings(max_examples=60, deadline=None)
@given(texts())
def test_odds_at_a_position_start_with_the_best(text):
    logprobs, _, k = text
    odds = odds_at(completion_table(as_completion(*text)))
    assert list(odds.values()) == sorted(odds.values(), reverse=True)
    if k:
        assert math.log(next(iter(odds.values()))) == pytest.approx(logprobs[0].max(), abs=1e-9)
