"""Ask a server how probable given texts are: whole prompts, and the answers of multiple-choice questions."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import openai
import pandas as pd
from openai import OpenAI

from helpers.client import root_of
from helpers.logprobs import LogprobsError, chosen, offsets, prompt_table

PROMPTS_AT_ONCE = 64  # in one request: a response holds a few hundred bytes for each token


def read_prompts(client: OpenAI, model: str, prompts: Sequence[str], *, k: int = 0) -> list[pd.DataFrame]:
    """The table of each prompt (logprobs.prompt_table with ids), with the k most probable tokens at each position.

    The server reads each prompt and writes one token, which is thrown away. Prompts may differ in length.
    Raises LogprobsError for an empty prompt and for a k above what the server gives.
    """
    if isinstance(prompts, str):
        raise LogprobsError("Pass a list of prompts; for one text, a list of one.")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise LogprobsError(f"Prompt {number} is empty: there is nothing to score. Leave it out, or write a text.")
    tables, remaining = [], iter(prompts)
    while batch := list(islice(remaining, PROMPTS_AT_ONCE)):
        options = {"prompt_logprobs": k, "return_token_ids": True}
        try:
            reply = client.completions.create(
                model=model, prompt=batch, max_tokens=1, temperature=0, extra_body=options
            )
        except openai.BadRequestError as error:
            raise _refused(error, k) or error from None
        plain = reply.model_dump()  # once: it is large
        tables += [prompt_table(plain, prompt=prompt, choice=number) for number, prompt in enumerate(batch)]
    return tables


def _refused(error: openai.BadRequestError, k: int) -> LogprobsError | None:
    if most := re.search(r"greater than max allowed: (\d+)", str(error)):
        return LogprobsError(
            f"k = {k} is more than this server gives, at most {most[1]}. Ask for fewer, or start it with `--max-logprobs {k}`."
        )
    return None


def score_answers(client: OpenAI, model: str, question: str, answers: Sequence[str]) -> pd.DataFrame:
    """A row for each answer: how probable it is as the continuation of the question.

    tokens, logprob (their sum), per_token (their mean), per_character, and the sums and means each turned into
    probabilities that add up to one over the answers: `probability` and `by_length`.

    The sum is the logarithm of the probability of just this text, which falls with every further token; the mean makes
    up for length and is no probability of anything. Answers carry their own leading space, as in " sunny".
    Raises LogprobsError for answers that are fewer than two, empty, equal or merge with the question's last token.
    """
    return score_questions(client, model, [(question, answers)])[0]


def score_questions(client: OpenAI, model: str, questions: Sequence[tuple[str, Sequence[str]]]) -> list[pd.DataFrame]:
    """score_answers for many (question, answers) pairs in few requests. Raises what it raises."""
    for question, answers in questions:
        _check(question, answers)
    prompts = [text for question, answers in questions for text in (question, *(question + a for a in answers))]
    tables = iter(read_prompts(client, model, prompts))
    return [_scored(question, answers, next(tables), tables) for question, answers in questions]


def _check(question: str, answers: Sequence[str]) -> None:
    if isinstance(answers, str) or len(answers) < 2:
        raise LogprobsError(f"{question!r} needs a list of at least two answers to choose from.")
    if "" in answers:
        raise LogprobsError(f"{question!r} has an empty answer, which has no tokens to score.")
    if len(set(answers)) < len(answers):
        raise LogprobsError(f"{question!r} has the same answer twice, which would halve its probability.")


def _scored(question: str, answers: Sequence[str], alone: pd.DataFrame, tables: Iterator[pd.DataFrame]) -> pd.DataFrame:
    start = chosen(alone)["id"].tolist()
    rows = {}
    for answer in answers:
        whole = chosen(next(tables))
        if whole["id"].tolist()[: len(start)] != start:
            raise LogprobsError(_merged(question, answer))
        logprobs = whole["logprob"][len(start) :]
        rows[answer] = {
            "tokens": len(logprobs), "logprob": logprobs.sum(), "per_token": logprobs.mean(),
            "per_character": logprobs.sum() / len(answer),
        }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"tokens": int})
    return table.assign(probability=softmax(table["logprob"]), by_length=softmax(table["per_token"]))


def _merged(question: str, answer: str) -> str:
    mend = "Move the space at the end of the question to the front of the answers."
    if question == question.rstrip():
        mend = "Begin the answer with a space or a new line, or end the question where a word ends."
    return f"At the seam of {question[-20:]!r} and {answer[:20]!r} two pieces become one token, so the answer has no tokens of its own. {mend}"


def softmax(logprobs: pd.Series) -> pd.Series:
    """exp, scaled to add up to one; the largest is taken off first so that long texts do not underflow to 0."""
    powers = np.exp(logprobs - logprobs.max())
    return powers / powers.sum()


def with_texts(table: pd.DataFrame, client: OpenAI, text: str | None = None) -> pd.DataFrame:
    """The table with the texts of tokens that it knows by id alone, asked from the server's /detokenize.

    `text` is the whole text, for offsets that leave out marks such as <s>.
    A chosen token that ends within a character (one byte of an emoji) is "" and the token that completes it has it
    whole, as in vLLM's own tables; an alternative of that kind is "\\ufffd".
    """
    url = f"{root_of(client)}/detokenize"

    def ask(ids: list[int]) -> str:
        return str(client.post(url, cast_to=dict[str, Any], body={"tokens": ids})["prompt"])

    unknown = table.loc[(table["token"] == "") & table["id"].notna() & ~table["chosen"], "id"]
    texts = {int(number): ask([int(number)]) for number in unknown.unique()}
    named = table.copy()
    named.loc[unknown.index, "token"] = [texts[int(number)] for number in unknown]
    standing = _standing(chosen(table), ask)
    named.loc[named["chosen"], "token"] = standing
    named["offset"] = named["position"].map(dict(enumerate(offsets(standing, text))))
    return named.astype(table.dtypes.to_dict())


def _standing(rows: pd.DataFrame, ask: Callable[[list[int]], str]) -> list[str]:
    """The chosen tokens' texts; pieces of one character are asked together, up to the piece that completes it."""
    if rows["id"].isna().any():
        return [str(token) for token in rows["token"]]
    known: dict[tuple[int, ...], str] = {}
    tokens, open_piece = [], []
    for number in rows["id"].astype(int):
        open_piece.append(number)
        whole = known.setdefault(tuple(open_piece), "") or ask(open_piece)
        known[tuple(open_piece)] = whole
        complete = not whole.endswith("\ufffd") or len(open_piece) == 4  # UTF-8 has at most four bytes a character
        tokens.append(whole if complete else "")
        open_piece = [] if complete else open_piece
    return tokens
