"""Log probabilities as tidy tables: completions' and chat's `logprobs`, and vLLM's `prompt_logprobs`.

A table has one row for each position and each token the server named there: the chosen one and its alternatives.

    position       which token of the text, from 0
    token          its text; "" for a piece of a character whose other pieces follow, and where the text is not known
    id             its number in the vocabulary, missing where the response does not say
    offset         characters of the text before this position; a token that the text leaves out (<s>) takes no room
    logprob        natural logarithm of its probability given all tokens before, missing for the first token of a prompt
    probability    exp(logprob)
    rank           1 for the most probable token of the whole vocabulary, missing where the response does not tell
    chosen         the token that stands in the text
    most_probable  rank == 1, missing where the response does not tell

vLLM's logprobs come before penalties, temperature, min_p, top_k and top_p (`--logprobs-mode raw_logprobs`, the default).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pandas as pd

from helpers.errors import WorkshopError

DTYPES = {
    "position": "int64", "token": "str", "id": "Int64", "offset": "int64", "logprob": "float64",
    "probability": "float64", "rank": "Int64", "chosen": "bool", "most_probable": "boolean",
}  # fmt: skip
ID_FORM = "token_id:"  # what `return_tokens_as_token_ids` writes in place of the text

ASK = {
    "completion": "pass `logprobs=k` in the request: 0 for the chosen tokens, k for the k most probable ones as well.",
    "chat": "pass `logprobs=True` in the request, and `top_logprobs=k` for the k most probable ones as well.",
    "prompt": 'pass `extra_body={"prompt_logprobs": k}` in the request: 0 for the prompt\'s tokens, k for the k most probable ones as well.',
}  # fmt: skip


class LogprobsError(WorkshopError):
    """Log probabilities that are missing, cut off, or cannot be had."""


@dataclass
class _Entry:
    """One token that the server named at one position; its logprob is NaN where the server gives none."""

    token: str
    logprob: float
    chosen: bool = False
    id: int | None = None
    rank: int | None = None


# --- the three forms of response ----------------------------------------------------------------------------------


def completion_table(reply: Any, *, k: int | None = None, choice: int = 0) -> pd.DataFrame:
    """The tokens of a completion (with `echo=True`, of prompt and completion) and their alternatives.

    `reply` is what the client returned, or its JSON as a dict. `k` is what `logprobs` was in the request: with it more
    ranks are certain. Ids are known when the request had `extra_body={"return_token_ids": True}` (the chosen tokens) or
    `{"return_tokens_as_token_ids": True}` (all, and `with_texts` finds the texts).

    The API lists alternatives under their text, so of two with the same text (two pieces of a character, say) only one
    comes back; only ids keep both. Raises LogprobsError when the response has no logprobs or is cut off.
    """
    said = _choice(reply, choice)
    found = said.get("logprobs") or _missing("completion")
    tokens, logprobs = found.get("tokens") or [], found.get("token_logprobs") or []
    tops = found.get("top_logprobs") or [None] * len(tokens)
    _same_length(tokens=tokens, token_logprobs=logprobs, top_logprobs=tops)
    ids = _ids(said, len(tokens))
    positions = []
    for token, logprob, top, number in zip(tokens, logprobs, tops, ids, strict=True):
        entries = [_entry(token, logprob, chosen=True, number=number)]
        entries += [_entry(*other) for other in (top or {}).items() if other != (token, logprob)]
        positions.append(_ranked(entries, whole_top=k is not None and len(entries) <= k))
    return _table(positions, said.get("text"))


def chat_table(reply: Any, *, choice: int = 0) -> pd.DataFrame:
    """The tokens of a chat answer and their alternatives; see completion_table, also for what it raises.

    vLLM puts the chosen token first and then cuts the list to `top_logprobs`, so that an improbable chosen token takes
    the place of the least of the k: with `top_logprobs=1` the most probable token never shows beside another chosen one.
    """
    said = _choice(reply, choice)
    found = (said.get("logprobs") or {}).get("content") or _missing("chat")
    ids = _ids(said, len(found))
    positions = []
    for item, number in zip(found, ids, strict=True):
        chosen = _entry(item["token"], item["logprob"], chosen=True, number=number)
        if item["token"].startswith(ID_FORM) and item.get("bytes") is not None:
            chosen.token = bytes(item["bytes"]).decode(errors="replace")
        same = (item["token"], item["logprob"])
        others = [(other["token"], other["logprob"]) for other in item.get("top_logprobs") or []]
        positions.append(_ranked([chosen, *(_entry(*other) for other in others if other != same)]))
    return _table(positions, (said.get("message") or {}).get("content"))


def prompt_table(reply: Any, *, prompt: str | None = None, choice: int = 0) -> pd.DataFrame:
    """The tokens of the prompt and their alternatives, from vLLM's `prompt_logprobs`; works for both APIs.

    The first token has nothing before it, hence no logprob and no alternatives; for most models it is the mark <s> that
    the server puts in front. Its id is known when the request had `extra_body={"return_token_ids": True}`.
    `prompt` is the text that was sent, for offsets that leave out such marks. Raises LogprobsError as completion_table.
    """
    said = _choice(reply, choice)
    holder = said if said.get("prompt_logprobs") is not None else _plain(reply)
    found = holder.get("prompt_logprobs") or _missing("prompt")
    ids = holder.get("prompt_token_ids") or [None] * len(found)
    _same_length(prompt_logprobs=found, prompt_token_ids=ids)
    positions = []
    for named, number in zip(found, ids, strict=True):
        if not named:
            positions.append([_Entry("", math.nan, chosen=True, id=number)])
            continue
        here = number if number is not None else int(next(iter(named)))  # vLLM names the prompt's own token first
        entries = [
            _Entry(one["decoded_token"] or "", _or_nan(one["logprob"]), int(key) == here, int(key), one["rank"])
            for key, one in named.items()
        ]
        positions.append(_ranked(entries))
    return _table(positions, prompt)


# --- what one reads from a table ----------------------------------------------------------------------------------


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the tokens that stand in the text, one for each position."""
    return table[table["chosen"]].reset_index(drop=True)


def odds_at(table: pd.DataFrame, position: int = 0) -> dict[str, float]:
    """{token: probability} at one position, the most probable first. Raises LogprobsError when there is no such position."""
    rows = table[table["position"] == position].sort_values("probability", ascending=False)
    if rows.empty:
        raise LogprobsError(f"The table has no position {position}; it goes from 0 to {table['position'].max()}.")
    return dict(zip(rows["token"], rows["probability"], strict=True))


@dataclass(frozen=True, repr=False)
class Perplexity:
    """`nats` is the sum of -logprob over the `tokens` that have one; `value` is exp(nats per token)."""

    tokens: int
    nats: float

    @property
    def per_token(self) -> float:
        """Nats: the mean of -logprob."""
        return self.nats / self.tokens

    @property
    def value(self) -> float:
        """Equally likely choices for each token."""
        return math.exp(self.per_token)

    def __repr__(self) -> str:
        return f"perplexity {self.value:.2f} ({self.per_token:.3f} nats per token, {self.tokens} tokens)"


def perplexity(table: pd.DataFrame) -> Perplexity:
    """How surprised the model is by a text: exp of the mean of -logprob, in equally likely choices for each token.

    Tokens without a logprob do not count. That is the first of the prompt: the mark <s> for models that begin with one,
    the first word for those that do not, so figures of two such models differ by what the first word costs.
    Raises LogprobsError when no token has one.
    Source: Jelinek and others, J. Acoust. Soc. Am. 62, S63 (1977).
    """
    scored = chosen(table)["logprob"].dropna()
    if scored.empty:
        raise LogprobsError(
            "No token of this text has a logprob: the first one never has. Give a text of at least two tokens."
        )
    return Perplexity(len(scored), -float(scored.sum()))


# --- machinery ----------------------------------------------------------------------------------------------------


def _plain(reply: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = reply if isinstance(reply, Mapping) else reply.model_dump()
    return plain


def _choice(reply: Any, number: int) -> dict[str, Any]:
    choices = _plain(reply).get("choices") or []
    if not 0 <= number < len(choices):
        raise LogprobsError(f"The response has {len(choices)} choices, counted from 0; choice {number} is not there.")
    said: dict[str, Any] = choices[number]
    return said


def _missing(kind: str) -> NoReturn:
    raise LogprobsError(f"This response has no log probabilities of the {kind}: {ASK[kind]}")


def _same_length(**lists: list[Any]) -> None:
    if len({len(items) for items in lists.values()}) > 1:
        sizes = ", ".join(f"{name} has {len(items)}" for name, items in lists.items())
        raise LogprobsError(f"The response does not fit together ({sizes}); it was cut off or changed, ask again.")


def _ids(said: dict[str, Any], tokens: int) -> list[int | None]:
    """The ids of the chosen tokens where the response has them; echo puts those of the prompt in front."""
    ids = said.get("token_ids")
    if ids is None:
        return [None] * tokens
    ids = ids if len(ids) == tokens else [*(said.get("prompt_token_ids") or []), *ids]
    ids = ids[:tokens]  # echo with max_tokens=0 names the prompt's tokens, but counts one of the answer
    _same_length(tokens=[None] * tokens, token_ids=ids)
    return ids


def _entry(token: str, logprob: float | None, chosen: bool = False, number: int | None = None) -> _Entry:
    if token.startswith(ID_FORM):
        return _Entry("", _or_nan(logprob), chosen, int(token.removeprefix(ID_FORM)))
    return _Entry(token, _or_nan(logprob), chosen, number)


def _or_nan(logprob: float | None) -> float:
    return math.nan if logprob is None else logprob


def _ranked(entries: list[_Entry], whole_top: bool = False) -> list[_Entry]:
    """The entries of one position, most probable first, with the ranks that are certain: 1 + how many are more probable.

    The alternatives are the most probable of the vocabulary, without gaps. Only a chosen token below all of them may
    stand farther down than it seems, unless the list is known to be the `whole_top`, or it has more than one half.
    """
    if any(math.isnan(entry.logprob) for entry in entries):
        return [entry for entry in entries if entry.chosen]
    entries = sorted(entries, key=lambda entry: -entry.logprob)
    for entry in entries:
        above = sum(other.logprob > entry.logprob for other in entries)
        if whole_top or not (entry.chosen and above == len(entries) - 1) or entry.logprob > math.log(0.5):
            entry.rank = above + 1
    return entries


def _table(positions: list[list[_Entry]], text: str | None) -> pd.DataFrame:
    standing = [next(entry for entry in entries if entry.chosen).token for entries in positions]
    starts = offsets(standing, text)
    rows = [
        (position, e.token, e.id, starts[position], e.logprob, math.exp(e.logprob), e.rank, e.chosen, _is_first(e, entries))
        for position, entries in enumerate(positions) for e in entries
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(DTYPES)).astype(DTYPES)


def _is_first(entry: _Entry, entries: list[_Entry]) -> bool | None:
    if entry.rank is not None:
        return entry.rank == 1
    return False if any(other.rank == 1 for other in entries) else None


def offsets(tokens: Iterable[str], text: str | None = None) -> list[int]:
    """Characters before each token; with the text, those that it leaves out (<s>, an end mark) take no room."""
    starts, at = [], 0
    for token in tokens:
        starts.append(at)
        if text is None or text.startswith(token, at):
            at += len(token)
    return starts
