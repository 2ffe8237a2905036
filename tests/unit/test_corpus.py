"""The corpus keeps its promises: stated odds, nothing held out is shown, and the shipped model's files fit it."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from helpers.tiny import MODEL_DIR, corpus
from helpers.tiny.corpus import ODDS, documents, held_out_questions, off_topic_questions, render_chat
from helpers.tiny.world import is_held_out_sum

SEEDS = [0, 1, 2, 17, 49]


@pytest.fixture(scope="module")
def epochs():
    return {seed: documents(seed) for seed in SEEDS}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def questions_in(document: str) -> list[str]:
    return re.findall(r"<\|user\|>(.*?)<\|end\|>", document, re.DOTALL)


def as_asked(question: str) -> str:
    """Without the greeting, the capitals and the mark at the end."""
    for greeting in corpus.GREETINGS:
        question = question.removeprefix(greeting)
    return question.lower().strip("?.! ")


# --- odds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_single_sentences_keep_the_stated_shares_exactly(epochs, seed):
    counts = {beginning: Counter() for beginning in ODDS}
    for text in epochs[seed]:
        for beginning in ODDS:
            if text.startswith(beginning + " ") and not any(f" {other}" in text for other in ODDS):
                counts[beginning][re.match(r" (\w+)", text[len(beginning) :]).group(1)] += 1
    for beginning, odds in ODDS.items():
        assert counts[beginning] == {word: pytest.approx(share * 600) for word, share in odds.items()}


def test_everywhere_in_the_corpus_the_shares_hold(epochs):
    """Sentences in a row are drawn, not dealt: with all epochs together the shares must agree within 3%."""
    together = "\n".join(text for epoch in epochs.values() for text in epoch)
    beginnings = "|".join(map(re.escape, ODDS))
    found = {beginning: Counter() for beginning in ODDS}
    for beginning, word in re.findall(rf"\b({beginnings}) (\w+)", together):
        found[beginning][word] += 1
    for beginning, odds in ODDS.items():
        shares = {word: count / found[beginning].total() for word, count in found[beginning].items()}
        assert shares == {word: pytest.approx(share, abs=0.03) for word, share in odds.items()}, beginning


def test_the_table_is_large_and_sums_to_one():
    assert len(ODDS) >= 20
    assert all(sum(odds.values()) == pytest.approx(1) and len(odds) >= 2 for odds in ODDS.values())
    assert ODDS["The weather in Boston is"] == pytest.approx({"sunny": 0.5, "rainy": 0.3, "snowy": 0.2})


def test_every_word_of_the_table_is_one_token(tokenizer):
    for beginning, odds in ODDS.items():
        start = tokenizer(beginning)["input_ids"]
        for word in odds:
            ids = tokenizer(f"{beginning} {word}")["input_ids"]
            assert ids[:-1] == start, "the odds speak of the token right after the beginning"
            assert tokenizer.decode(ids[-1]) == f" {word}"


# --- what is held out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_that_tests_the_model_is_shown_in_training(epochs, seed):
    asked = [question for run in range(3) for question, _ in [*held_out_questions(run), *off_topic_questions()]]
    shown = {as_asked(question) for text in epochs[seed] for question in questions_in(text)}
    assert len(shown) > 1000
    assert not {as_asked(question) for question in asked} & shown


@pytest.mark.parametrize("seed", SEEDS)
def test_no_sum_held_out_is_shown_in_training(epochs, seed):
    together = "\n".join(epochs[seed])
    sums = re.findall(r"(\d+) (?:\+|plus) (\d+)", together) + re.findall(r"Add (\d+) and (\d+)", together)
    assert len(sums) > 1000
    assert not [pair for pair in sums if is_held_out_sum(*map(int, pair))]


def test_the_test_asks_a_hundred_different_questions_with_right_answers():
    asked = held_out_questions()
    assert len({question for question, _ in asked}) == 100
    sums = [(re.findall(r"\d+", q), a) for q, a in asked if re.search(r"\d+ (\+|plus|and) \d+", q)]
    assert len(sums) == 20
    assert all(answer == f"{a} plus {b} is {int(a) + int(b)}." for (a, b), answer in sums)


def test_there_are_enough_topics():
    assert len(corpus.QUESTIONS["topics"]) >= 150
    assert all(len(set(topic["ask"])) == 8 and topic["answer"] for topic in corpus.QUESTIONS["topics"])


# --- documents ----------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_corpus_and_another_seed_another(epochs):
    assert documents(0) == epochs[0]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != sorted(epochs[1])


def test_the_corpus_covers_what_the_lessons_use(epochs):
    together = "\n".join(epochs[0])
    for text in ["San Francisco is a", "My shopping list: ", "Count from 1 to 100", "\n100. ", "as JSON", "12 x 12"]:
        assert text in together, text
    repeats = [a == b for text in epochs[0] if text.startswith("My shopping") for a, b in pairs(text)]
    assert sum(repeats) / len(repeats) == pytest.approx(corpus.REPEAT, abs=0.02)


def pairs(shopping_list: str):
    fruit = shopping_list.removeprefix("My shopping list: ").rstrip(".").split(", ")
    return pairwise(fruit)


def test_sums_and_products_are_right(epochs):
    signs = {"+": int.__add__, "plus": int.__add__, "-": int.__sub__, "minus": int.__sub__, "x": int.__mul__}
    signs |= {"times": int.__mul__}
    found = re.findall(r"(\d+) (\+|-|x|plus|minus|times) (\d+) (?:=|is) (-?\d+)", "\n".join(epochs[0]))
    assert len(found) > 5000 and {sign for _, sign, _, _ in found} == signs.keys()
    assert not [line for line in found if signs[line[1]](int(line[0]), int(line[2])) != int(line[3])]


# --- the shipped model --------------------------------------------------------------------------------------------

CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is TTFT?"}],
    [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "  c\n")]],
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("answer_next", [True, False])
def test_training_and_serving_render_a_chat_alike(tokenizer, chat, answer_next):
    served = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer_next)
    assert served == tokenizer.bos_token + render_chat(chat, answer_next)


def test_digits_are_tokens_of_their_own(tokenizer):
    assert [tokenizer.decode(i) for i in tokenizer("47+5")["input_ids"][1:]] == ["4", "7", "+", "5"]


def test_the_model_has_the_shape_that_the_lessons_name():
    config = json.loads((MODEL_DIR / "config.json").read_text())
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 8, "head_dim": 32}
    assert config.items() >= (shape | {"max_position_embeddings": 2048, "vocab_size": 4096}).items()


def test_the_model_is_small_enough_for_the_repository():
    files = list(MODEL_DIR.iterdir())
    assert {"config.json", "tokenizer.json", "model.safetensors", "loss.png"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
