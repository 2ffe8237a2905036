"""What the live server returns is what the tables, the scores and the predictions of helpers say it is."""

import json
import math
from collections import Counter
from pathlib import Path

import openai
import pytest

from helpers import choices, sampling
from helpers.client import connect
from helpers.goodness import chi_square
from helpers.logprobs import LogprobsError, chat_table, chosen, completion_table, odds_at, perplexity, prompt_table
from helpers.scoring import read_prompts, score_answers, with_texts
from helpers.tiny import MODEL_NAME
from helpers.tiny.corpus import ODDS

RECORDED = json.loads((Path(__file__).parents[1] / "unit" / "logprobs.json").read_text())
BOSTON, COLOR, SHOPPING = "The weather in Boston is", "My favorite color is", "My shopping list: apples,"
SMILE = "The home team won 🙂 naïvely."
OURS = {"prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "top_k", "min_p"}


@pytest.fixture(scope="module")
def client(live_server):
    return connect(quiet=True)


def send(client, **request):
    options = {name: value for name, value in request.items() if name not in OURS}
    own = {name: value for name, value in request.items() if name in OURS}
    api = client.chat.completions if "messages" in request else client.completions
    return api.create(model=MODEL_NAME, extra_body=own, **options)


# --- what comes back --------------------------------------------------------------------------------------------------


def assert_alike(one, other, path="response"):
    """The same shape and texts; logprobs may differ by what another processor rounds otherwise."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_alike(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{path}[{number}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=0.02, abs=0.1), path
    elif not path.endswith("rank"):  # far down the vocabulary ranks move with the last bit
        assert one == other, path


@pytest.mark.parametrize("name", RECORDED)
def test_the_server_still_answers_as_recorded(client, name):
    """The unit tests read these recordings; a vLLM that answers in another form must be noticed here."""
    reply, recorded = send(client, **RECORDED[name]["request"]).model_dump(), RECORDED[name]["response"]
    for choice, kept in zip(reply["choices"], recorded["choices"], strict=True):
        assert_alike(
            {key: choice[key] for key in kept if key != "message"}, {k: v for k, v in kept.items() if k != "message"}
        )
    if "messages" in RECORDED[name]["request"]:
        assert_alike(reply["prompt_logprobs"], recorded["prompt_logprobs"])


@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_k_most_probable_and_the_chosen_one(client, k):
    """k rows at each position, and one more where the chosen token is not among them; 0 names the chosen one alone."""
    reply = send(client, prompt=BOSTON, max_tokens=40, temperature=2, seed=3, logprobs=k)
    table = completion_table(reply, k=k)
    sizes = table.groupby("position").size().tolist()
    if k:
        outside = chosen(table)["rank"].isna()
        assert sizes == (k + outside).tolist() and outside.any() and not outside.all()
    else:
        assert set(sizes) == {1}
    assert len(sizes) == reply.usage.completion_tokens


@pytest.mark.parametrize("options", [{"logprobs": 21}, {"prompt_logprobs": 21}])
def test_the_server_gives_twenty_at_most(client, options):
    with pytest.raises(openai.BadRequestError, match="max allowed: 20"):
        send(client, prompt=BOSTON, max_tokens=1, **options)
    with pytest.raises(LogprobsError, match=r"k = 21 is more than this server gives, at most 20\. .*--max-logprobs 21"):
        read_prompts(client, MODEL_NAME, [BOSTON], k=21)


def test_another_refusal_keeps_its_own_words(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        read_prompts(client, MODEL_NAME, ["again " * 3000])


def test_written_read_and_echoed_tokens_have_the_same_logprobs(client):
    """The same text by three ways: as the model wrote it, sent back as a prompt, and echoed."""
    reply = send(client, prompt="San Francisco is a", max_tokens=8, temperature=0, logprobs=0)
    text = "San Francisco is a" + reply.choices[0].text
    written = chosen(completion_table(reply))
    (table,) = read_prompts(client, MODEL_NAME, [text])
    read = chosen(table)
    echoed = chosen(completion_table(send(client, prompt=text, max_tokens=0, temperature=0, logprobs=0, echo=True)))
    assert read["token"].tolist()[1:] == echoed["token"].tolist()[1:]
    assert read["token"].tolist()[-8:] == written["token"].tolist()
    assert read["offset"].tolist() == echoed["offset"].tolist()
    assert read["logprob"].tolist()[1:] == pytest.approx(echoed["logprob"].tolist()[1:], abs=0.05)
    assert read["logprob"].tolist()[-8:] == pytest.approx(written["logprob"].tolist(), abs=0.05)


def test_chat_and_completion_agree(client):
    question = {"role": "user", "content": "What is continuous batching?"}
    chat = chat_table(send(client, messages=[question], max_tokens=6, temperature=0, logprobs=True, top_logprobs=3))
    by_hand = f"<|user|>{question['content']}<|end|><|assistant|>"
    plain = completion_table(send(client, prompt=by_hand, max_tokens=6, temperature=0, logprobs=3))
    assert chosen(chat)["token"].tolist() == chosen(plain)["token"].tolist()
    assert chosen(chat)["logprob"].tolist() == pytest.approx(chosen(plain)["logprob"].tolist(), abs=0.05)


def test_texts_of_ids_are_those_of_the_prompt(client):
    reply = send(
        client, prompt=SMILE, max_tokens=1, temperature=0, logprobs=2, echo=True, return_tokens_as_token_ids=True
    )
    table = with_texts(completion_table(reply), client, reply.choices[0].text)
    (read,) = read_prompts(client, MODEL_NAME, [SMILE], k=2)
    named = chosen(table).iloc[:-1]  # without the token written
    assert named["token"].tolist() == ["<s>", *chosen(read)["token"].tolist()[1:]]
    assert named["offset"].tolist() == chosen(read)["offset"].tolist()
    alternatives = table[~table["chosen"]].merge(read[~read["chosen"]], on=["position", "id"])
    assert len(alternatives) > 10 and (alternatives["token_x"] == alternatives["token_y"]).all()


def test_many_prompts_of_mixed_length_come_back_in_order(client):
    prompts = ["San" + " Francisco" * (i % 7) + " is" for i in range(150)]  # more than one request holds
    tables = read_prompts(client, MODEL_NAME, prompts)
    assert ["".join(chosen(table)["token"]) for table in tables] == prompts
    assert (
        prompt_table(send(client, prompt=["The GPU", "San"], max_tokens=1, prompt_logprobs=0), choice=1)[
            "token"
        ].tolist()[1]
        == "San"
    )


def test_perplexity_rises_with_surprise(client):
    texts = ["The weather in Cairo is sunny today.", "The weather in Cairo is snowy today.", "today snowy is Cairo."]
    values = [perplexity(table).value for table in read_prompts(client, MODEL_NAME, texts)]
    assert values == sorted(values) and values[0] < 3 and values[2] > 1000


# --- what it draws ----------------------------------------------------------------------------------------------------


def odds_of_next(client, prompt, **options):
    return odds_at(
        completion_table(send(client, prompt=prompt, max_tokens=1, logprobs=20, **{"temperature": 0, **options}))
    )


def test_logprobs_come_before_everything_that_changes_the_odds(client):
    plain = odds_of_next(client, BOSTON)
    changed = [{"temperature": 2, "seed": 1}, {"temperature": 1, "seed": 1, "top_p": 0.5}, {"frequency_penalty": 2}]
    for options in changed:
        found = odds_of_next(client, BOSTON, **options)
        assert [found[word] for word in list(plain)[:5]] == pytest.approx(list(plain.values())[:5], rel=0.02)


SETTINGS = [
    (BOSTON, {"temperature": 1}),
    (BOSTON, {"temperature": 0.5}),
    (BOSTON, {"temperature": 2, "top_k": 20}),
    (COLOR, {"temperature": 1, "top_k": 3}),
    (COLOR, {"temperature": 1, "top_p": 0.7}),
    (COLOR, {"temperature": 1, "min_p": 0.2}),
    (COLOR, {"temperature": 2, "top_k": 5, "min_p": 0.3}),  # orange stays: min_p looks at warmed odds
    (COLOR, {"temperature": 0.5, "top_p": 0.7}),  # green goes: top_p looks at cooled odds
    (COLOR, {"temperature": 2, "top_k": 4, "top_p": 0.8}),  # purple goes: top_p looks at what top_k has left
]


@pytest.mark.parametrize("prompt, options", SETTINGS, ids=lambda value: value if isinstance(value, str) else str(value))
def test_the_server_draws_from_the_odds_we_predict(client, prompt, options):
    predicted = sampling.server_odds(odds_of_next(client, prompt), **options)
    reply = send(client, prompt=prompt, max_tokens=1, n=1500, seed=11, **options)
    drawn = Counter(choice.text for choice in reply.choices)
    fit = chi_square(drawn, predicted)
    print(options, f"p = {fit.p_value:.3f}", dict(drawn.most_common(5)))
    assert fit.p_value > 0.001
    if prompt == COLOR:
        assert set(drawn) == {token for token, p in predicted.items() if p}


def test_other_odds_are_told_apart_by_as_many_draws(client):
    odds = odds_of_next(client, BOSTON)
    drawn = Counter(c.text for c in send(client, prompt=BOSTON, max_tokens=1, n=1500, seed=11, temperature=1).choices)
    assert chi_square(drawn, sampling.apply_temperature(odds, 0.8)).p_value < 1e-4


@pytest.mark.parametrize(
    "penalty",
    [
        {"frequency_penalty": 1}, {"presence_penalty": 1}, {"frequency_penalty": -0.5},
        {"frequency_penalty": 1, "temperature": 0.5},
    ],
)  # fmt: skip
def test_penalties_are_taken_off_logits_by_what_the_answer_holds(client, penalty):
    """The third token after " apples,": apples and the comma have been written once, and the prompt does not count."""
    predicted = sampling.server_odds(
        odds_of_next(client, SHOPPING + " apples,"), written={" apples": 1, ",": 1}, **penalty
    )
    reply = send(client, prompt=SHOPPING, max_tokens=3, n=1500, seed=5, **{"temperature": 1, **penalty})
    third = Counter(c.text.removeprefix(" apples,") for c in reply.choices if c.text.startswith(" apples,"))
    fit = chi_square(third, predicted)
    print(penalty, f"p = {fit.p_value:.3f}", sum(third.values()), "draws")
    assert fit.p_value > 0.001 and sum(third.values()) > 500


@pytest.mark.parametrize("penalty, apples", [(2, 2), (1, 3)])
def test_frequency_penalty_ends_the_apples_when_it_exceeds_the_lead(client, penalty, apples):
    """apples lead by ln(0.6 / 0.044) = 2.6: two penalties of 2 exceed it, and three of 1."""
    reply = send(client, prompt=SHOPPING, max_tokens=12, temperature=0, frequency_penalty=penalty)
    assert reply.choices[0].text.split(",")[: apples + 1].count(" apples") == apples
    assert reply.choices[0].text.split(",")[apples] != " apples"


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_of_answers_are_the_corpus_odds(client):
    answers = [" city", " port", " beautiful city in California, with steep hills"]
    scores = score_answers(client, MODEL_NAME, "San Francisco is a", answers)
    assert scores.index.tolist() == answers and scores["tokens"].tolist() == [1, 1, 8]
    assert scores["logprob"].map(math.exp).tolist() == pytest.approx([0.6, 0.15, 0.25], abs=0.03)
    assert scores["logprob"].tolist() == pytest.approx((scores["per_token"] * scores["tokens"]).tolist())
    assert scores["probability"].sum() == pytest.approx(1) == scores["by_length"].sum()
    assert (scores["logprob"].idxmax(), scores["per_token"].idxmax()) == (answers[0], answers[2])


@pytest.mark.parametrize(
    "question, answers, mend",
    [("San Francisco is a ", ["city", "port"], "Move the space"), ("San Fran", ["cisco", "tic"], "where a word ends")],
)
def test_a_seam_within_a_token_is_refused(client, question, answers, mend):
    with pytest.raises(LogprobsError, match=f"become one token.*{mend}"):
        score_answers(client, MODEL_NAME, question, answers)


def test_the_quiz_is_known_by_whole_answers_and_not_by_letters(client):
    whole = choices.answer(client, MODEL_NAME, choices.capital_quiz(seed=2))
    letters = choices.answer(client, MODEL_NAME, choices.capital_quiz(letters_only=True, seed=2))
    assert whole.groupby("question").size().eq(4).all() and whole["question"].nunique() == 28
    assert choices.accuracy(whole) > 0.9 and choices.accuracy(letters) < 0.6


def test_probabilities_of_answers_mean_what_they_say(client):
    answered = choices.answer(client, MODEL_NAME, choices.corpus_questions(copies=30, seed=7))
    best = sum(max(odds.values()) for odds in ODDS.values()) / len(ODDS)
    as_served = choices.calibration_error(choices.reliability(answered["probability"], answered["right"]))
    too_sure = choices.calibration_error(choices.reliability(choices.sharpened(answered, 0.5), answered["right"]))
    print(f"calibration error {as_served:.3f}, at temperature 0.5 {too_sure:.3f}")
    assert as_served < 0.04 and too_sure > 2 * as_served
    assert choices.accuracy(answered) == pytest.approx(best, abs=0.06)
