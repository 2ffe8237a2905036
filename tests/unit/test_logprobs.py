"""Tables of what vLLM 0.32 really answered (logprobs.json: requests with their responses), and what is refused."""

import copy
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from openai.types import Completion

from helpers.logprobs import (
    DTYPES,
    LogprobsError,
    chat_table,
    chosen,
    completion_table,
    odds_at,
    offsets,
    perplexity,
    prompt_table,
)
from helpers.scoring import _standing, read_prompts, score_questions

RECORDED = json.loads(Path(__file__).with_name("logprobs.json").read_text())
CITY, PIECES = RECORDED["zero"]["request"]["prompt"], RECORDED["pieces"]["request"]["prompt"]


def reply(name):
    return copy.deepcopy(RECORDED[name]["response"])


def tokens(table):
    return chosen(table)["token"].tolist()


# --- completions ------------------------------------------------------------------------------------------------------


def test_zero_gives_the_chosen_tokens_and_k_the_alternatives():
    zero, three = completion_table(reply("zero"), k=0), completion_table(reply("three"), k=3)
    assert tokens(zero) == tokens(three) == [" city", " in"]
    assert three["token"].tolist() == [" city", " beautiful", " port", " in", " a", " the"]
    assert three["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    assert three["position"].tolist() == [0, 0, 0, 1, 1, 1] and three["offset"].tolist() == [0, 0, 0, 5, 5, 5]
    assert three.dtypes.astype(str).to_dict() == zero.dtypes.astype(str).to_dict() == DTYPES
    assert odds_at(three)[" beautiful"] == pytest.approx(math.exp(-1.4275174140930176))


def test_a_chosen_token_below_the_top_k_adds_a_row_whose_rank_is_not_known():
    table = completion_table(reply("drawn"), k=1)
    first = table[table["position"] == 0]
    assert first["token"].tolist() == [" city", " port"]
    assert first["chosen"].tolist() == [False, True] and first["most_probable"].tolist() == [True, False]
    assert first["rank"].iloc[0] == 1 and pd.isna(first["rank"].iloc[1])
    assert len(table) == 5, "the other three positions have one row each"


def test_what_the_client_returns_and_its_json_give_the_same_table():
    plain = {"id": "x", "created": 1, "model": "m", "object": "text_completion", **reply("three")}
    pd.testing.assert_frame_equal(completion_table(Completion.model_validate(plain)), completion_table(plain))


def test_ids_are_those_of_the_response():
    assert chosen(completion_table(reply("three")))["id"].tolist() == [605, 311]
    table = completion_table(reply("in_ids"))
    assert table["id"].tolist() == [605, 1583, 1058, 311, 264, 279] and set(table["token"]) == {""}
    assert table["logprob"].tolist() == completion_table(reply("three"))["logprob"].tolist()


def test_the_end_mark_takes_no_room_in_the_text():
    table = completion_table(reply("end"))
    assert tokens(table) == [".", "<|end|>"] and table["offset"].tolist() == [0, 1]
    assert reply("end")["choices"][0]["text"] == "."


@pytest.mark.parametrize("name, more", [("echo", [" city"]), ("echo_alone", [])])
def test_echo_holds_the_prompt_and_its_first_token_has_no_logprob(name, more):
    table = chosen(completion_table(reply(name)))
    assert table["token"].tolist() == ["<s>", "San", " Francisco", " is", " a", *more]
    assert table["logprob"].isna().tolist() == [True] + [False] * (4 + len(more))
    assert table["offset"].tolist()[:4] == [0, 0, 3, 13], "<s> is not in the text"


@pytest.mark.parametrize("name, read", [("pieces", completion_table), ("prompt_pieces", prompt_table)])
def test_the_pieces_of_a_character_add_up_to_the_text(name, read):
    """The emoji is four tokens; vLLM gives the first three no text, and the last one all of it."""
    table = chosen(read(reply(name)))
    text = "".join(table["token"]).removeprefix("<s>")
    assert text.startswith(PIECES)
    at = table.index[table["token"] == "🙂"][0]
    assert table["token"][at - 3 : at].tolist() == ["", "", ""]
    if name == "prompt_pieces":
        assert table["id"][at - 3 : at + 1].tolist() == [178, 259, 253, 230]
    for row in table.itertuples():
        assert row.token == "<s>" or PIECES[row.offset :].startswith(row.token) or row.offset >= len(PIECES)


def test_two_tokens_with_one_text_stay_two_rows():
    """The chosen piece and another piece are both "": the API's dict then holds the other one's logprob."""
    said = reply("zero")
    found = said["choices"][0]["logprobs"]
    found["tokens"][0], found["top_logprobs"][0] = "", {"": -3.0, " city": -1.0}
    first = completion_table(said).query("position == 0")
    assert first["logprob"].tolist() == [-0.4956326186656952, -1.0, -3.0] and first["chosen"].tolist() == [
        True,
        False,
        False,
    ]


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_has_the_same_columns():
    table = chat_table(reply("chat_three"))
    assert table.dtypes.astype(str).to_dict() == DTYPES
    assert table["token"].tolist()[:3] == ["The", "A", "I"] and table["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    assert chosen(table)["id"].tolist() == [301, 1879]
    assert tokens(chat_table(reply("chat_zero"))) == ["The", " feed"]


def test_chat_with_one_alternative_never_shows_what_was_more_probable():
    table = chat_table(reply("chat_drawn"))
    assert table["chosen"].all() and table["rank"].isna().all() and table["most_probable"].isna().all()


def test_chat_in_ids_has_the_chosen_text_from_its_bytes():
    table = chat_table(reply("chat_in_ids"))
    assert tokens(table) == [" grapes", " out"] and chosen(table)["id"].tolist() == [493, 667]
    assert table[~table["chosen"]]["id"].tolist() == [301, 965] and table["most_probable"].tolist() == [True, False] * 2


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_has_true_ranks_even_with_zero():
    table = prompt_table(reply("prompt_zero"), prompt=CITY)
    assert table["rank"].tolist()[1:] == [14, 1, 1, 1] and table["chosen"].all()
    assert "".join(table["token"]) == CITY and table["offset"].tolist() == [0, 0, 3, 13, 16]
    assert table["id"].isna().tolist() == [True] + [False] * 4, "the first is known by return_token_ids alone"


def test_the_first_token_has_an_id_and_no_logprob():
    first = prompt_table(reply("prompt_one")).iloc[0]
    assert (first["id"], first["token"], first["chosen"]) == (0, "", True)
    assert math.isnan(first["logprob"]) and pd.isna(first["rank"]) and pd.isna(first["most_probable"])


def test_the_prompts_own_token_is_known_by_its_id_wherever_it_stands():
    said = reply("prompt_one")
    expected = prompt_table(said)
    found = said["choices"][0]["prompt_logprobs"]
    found[1:] = [dict(reversed(named.items())) for named in found[1:]]
    pd.testing.assert_frame_equal(prompt_table(said), expected)


def test_prompts_of_different_length_in_one_response():
    one, other = (prompt_table(reply("two_prompts"), choice=number) for number in (0, 1))
    assert "".join(tokens(one)) == "The GPU is hot." and tokens(other)[-1] == "San"
    assert perplexity(one).tokens == 5 and perplexity(other).tokens == 1


def test_the_prompt_of_a_chat_holds_the_marks_of_its_template():
    table = prompt_table(reply("chat_prompt"))
    assert "".join(tokens(table)) == "<|user|>What is the weather?<|end|><|assistant|>"
    with pytest.raises(LogprobsError, match="of the chat: pass `logprobs=True`"):
        chat_table(reply("chat_prompt"))


# --- perplexity and offsets -------------------------------------------------------------------------------------------


def test_perplexity_of_a_recorded_prompt():
    table = prompt_table(reply("prompt_zero"))
    nats = 4.6135053634643555 + 0.0001616347290109843 + 4.482168878894299e-05 + 5.9126061387360096e-05
    found = perplexity(table)
    assert (found.tokens, found.nats) == (4, pytest.approx(nats))
    assert found.value == pytest.approx(math.exp(nats / 4)) and str(found).startswith(
        "perplexity 3.17 (1.153 nats per token"
    )


def test_perplexity_of_a_single_token_is_refused():
    table = prompt_table(reply("two_prompts"), choice=1)
    with pytest.raises(LogprobsError, match="at least two tokens"):
        perplexity(table[table["position"] == 0])


@pytest.mark.parametrize(
    "pieces, text, starts",
    [
        (["<s>", "a", "", "é", " b"], "aé b", [0, 0, 1, 1, 2]),
        (["a", " b", "<|end|>"], "a b", [0, 1, 3]),
        (["a", " b"], None, [0, 1]),
        ([], "x", []),
    ],
)
def test_offsets_count_characters_of_the_text(pieces, text, starts):
    assert offsets(pieces, text) == starts


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, name, said",
    [
        (completion_table, "none", "pass `logprobs=k`"), (completion_table, "prompt_one", "pass `logprobs=k`"),
        (chat_table, "zero", "pass `logprobs=True`"), (chat_table, "chat_prompt", "`top_logprobs=k`"),
        (prompt_table, "zero", r'extra_body=\{"prompt_logprobs": k\}'), (prompt_table, "chat_zero", "prompt_logprobs"),
    ],
)  # fmt: skip
def test_a_response_without_logprobs_names_the_parameter(read, name, said):
    with pytest.raises(LogprobsError, match=said):
        read(reply(name))


@pytest.mark.parametrize("number", [-1, 1])
def test_a_choice_that_is_not_there(number):
    with pytest.raises(LogprobsError, match="has 1 choices, counted from 0"):
        completion_table(reply("zero"), choice=number)


@pytest.mark.parametrize("name, field", [("three", "token_logprobs"), ("three", "top_logprobs"), ("echo", "tokens")])
def test_lists_of_mixed_length_are_refused(name, field):
    said = reply(name)
    said["choices"][0]["logprobs"][field].pop()
    with pytest.raises(LogprobsError, match=f"{field} has"):
        completion_table(said)


def test_ids_that_do_not_belong_to_the_tokens_are_refused():
    said = reply("prompt_one")
    said["choices"][0]["prompt_token_ids"].pop()
    with pytest.raises(LogprobsError, match="prompt_logprobs has 5, prompt_token_ids has 4"):
        prompt_table(said)
    said = reply("three")
    said["choices"][0].update(token_ids=[605], prompt_token_ids=[])
    with pytest.raises(LogprobsError, match="does not fit together"):
        completion_table(said)


def test_a_position_that_is_not_there():
    with pytest.raises(LogprobsError, match="no position 7; it goes from 0 to 1"):
        odds_at(completion_table(reply("zero")), 7)


@pytest.mark.parametrize("prompts, said", [("a text", "list of one"), (["a", ""], "Prompt 1 is empty")])
def test_prompts_are_checked_before_anything_is_sent(prompts, said):
    with pytest.raises(LogprobsError, match=said):
        read_prompts(None, "no model", prompts)


@pytest.mark.parametrize(
    "answers, said",
    [("ab", "at least two answers"), (["a"], "at least two"), (["a", ""], "empty answer"), (["a", "a"], "twice")],
)
def test_answers_are_checked_before_anything_is_sent(answers, said):
    with pytest.raises(LogprobsError, match=said):
        score_questions(None, "no model", [("Question", ["x", "y"]), ("Other", answers)])


# --- texts of ids -----------------------------------------------------------------------------------------------------


def test_pieces_of_one_character_are_put_together():
    vocabulary = {1: b"a", 2: b"\xf0", 3: b"\x9f\x99", 4: b"\x82", 5: b" b", 6: b"\xc3"}

    def ask(ids):
        return b"".join(vocabulary[number] for number in ids).decode(errors="replace")

    def standing(*ids):
        return _standing(pd.DataFrame({"id": ids, "token": ""}), ask)

    assert standing(1, 2, 3, 4, 5) == ["a", "", "", "🙂", " b"]
    assert standing(1, 6) == ["a", ""], "cut off within a character"
    assert standing(6, 6, 6, 6, 1)[-1] == "a", "bytes that never become a character do not swallow what follows"
