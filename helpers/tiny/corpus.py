"""The small Llama's corpus: generated text whose next-word odds are known, because we set them.

`documents(seed)` makes one epoch. Text that follows a beginning listed in odds.json appears in exactly the stated shares,
so a learner can compare exp(logprob) with the truth. The rest gives the model something to talk about: the workshop's
topics (questions.json), cities, sums, lists, stories, short chats (world.json).

Print some of it:  python -m helpers.tiny.corpus
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from helpers.tiny.world import (
    HERE,
    WORLD,
    arithmetic_document,
    ask,
    capital_document,
    city_document,
    counting,
    is_held_out_sum,
    render_chat,
    review_document,
    story,
    sum_exchange,
)  # fmt: skip

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a patient teacher in a workshop about serving language models.",
    "Answer clearly and briefly.",
]
TRAINED_PHRASINGS = 6  # of each topic's eight; the rest test the model
OFF_TOPIC_HELD_OUT = 10

QUESTIONS = json.loads((HERE / "questions.json").read_text())


def _shares(weights: dict[str, float]) -> dict[str, float]:
    return {word: weight / sum(weights.values()) for word, weight in weights.items()}


#: beginning -> {next word: probability}; the word follows a space, as in "The weather in Boston is" + " sunny".
ODDS: dict[str, dict[str, float]] = {
    beginning: _shares(weights) for beginning, weights in json.loads((HERE / "odds.json").read_text())["odds"].items()
}

#: In a shopping list the last fruit comes again with this probability, so a greedy model never stops repeating it.
REPEAT = 0.6


# --- known odds ---------------------------------------------------------------------------------------------------

SAN_FRANCISCO = {
    "city": " city in California, known for the Golden Gate Bridge, its steep hills and its cable cars.",
    "beautiful": " beautiful city in California, with steep hills, cable cars and the Golden Gate Bridge.",
    "port": " port on the coast of California, and ships pass under the Golden Gate Bridge every day.",
}


def _ending(beginning: str, word: str, rng: random.Random) -> str:
    """What follows the beginning, from the drawn word to the end of the sentence."""
    if beginning.startswith("San Francisco is"):
        return SAN_FRANCISCO[word]
    if beginning.startswith("The weather"):
        return f" {word}{rng.choice([' today.', '.'])}"
    return f" {word}."


def odds_documents(rng: random.Random, copies: int = 600) -> Iterator[str]:
    """Each beginning `copies` times, its words in exactly their shares (all of ours divide 600)."""
    for beginning, odds in ODDS.items():
        for word, share in odds.items():
            for _ in range(round(copies * share)):
                yield beginning + _ending(beginning, word, rng)


def mixed_odds_document(rng: random.Random) -> str:
    """Two to four such sentences in a row, each drawn from its odds."""
    beginnings = rng.sample(sorted(ODDS), rng.randint(2, 4))
    words = [rng.choices(list(ODDS[b]), list(ODDS[b].values()))[0] for b in beginnings]
    return " ".join(b + _ending(b, w, rng) for b, w in zip(beginnings, words, strict=True))


def shopping_list(rng: random.Random) -> str:
    """A list that repeats itself: the last fruit again with probability REPEAT, else any of the other nine."""
    items = [rng.choice(WORLD["fruit"])]
    for _ in range(rng.randint(5, 40)):
        other = rng.choice([f for f in WORLD["fruit"] if f != items[-1]])
        items.append(items[-1] if rng.random() < REPEAT else other)
    return f"My shopping list: {', '.join(items)}."


# --- the workshop's own topics ------------------------------------------------------------------------------------


FILLER = set(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "do",
        "does",
        "did",
        "how",
        "what",
        "why",
        "when",
        "which",
        "who",
        "i",
        "me",
        "my",
        "we",
        "you",
        "to",
        "of",
        "in",
        "for",
        "it",
        "and",
    ]
)
FRAMES = ["{}?", "What is {}?", "Explain {}.", "Tell me about {}.", "{} in one sentence?", "I do not understand {}."]
GREETINGS = ["", "", "", "", "Please tell me: ", "Quick question: ", "Hi! "]


def _plain(question: str) -> str:
    return question.lower().rstrip("?.! ")


#: Never shown in training, whatever the changes below make of a trained phrasing.
HELD_OUT = {_plain(q) for t in [*QUESTIONS["topics"], *QUESTIONS["small_talk"]] for q in t["ask"][TRAINED_PHRASINGS:]}


def _as_typed(question: str, topic: str, rng: random.Random) -> str:
    """The question as people type it: key words alone, words missing, lower case, a greeting, no mark at the end."""
    text, words = question, question.rstrip("?.").split()
    key_words = " ".join(word for word in words if word.lower() not in FILLER)
    style = rng.random()
    if style < 0.15:
        text = rng.choice(FRAMES).format(topic)
    elif style < 0.35:
        text = rng.choice(FRAMES).format(key_words)
    elif style < 0.65:
        text = " ".join(word for word in words if rng.random() > 0.2) + question[-1]
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.")
    usable = len(text) > 3 and _plain(text) not in HELD_OUT
    return rng.choice(GREETINGS) + text if usable else question


def exchange(topic: dict[str, Any], rng: random.Random) -> list[dict[str, str]]:
    """The two messages of a question on a topic, as somebody might type it, and its answer."""
    question = rng.choice(topic["ask"][:TRAINED_PHRASINGS])
    return ask(_as_typed(question, topic["topic"], rng), topic["answer"])


def topic_documents(rng: random.Random) -> Iterator[str]:
    """Every topic in every trained phrasing: as it stands, as people type it (three times), and as plain text."""
    for topic in [*QUESTIONS["topics"], *QUESTIONS["small_talk"]]:
        for question in topic["ask"][:TRAINED_PHRASINGS]:
            system = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.3 else []
            yield render_chat(ask(question, topic["answer"]))
            yield render_chat(system + exchange(topic, rng))
            yield from (render_chat(exchange(topic, rng)) for _ in range(2))
            yield rng.choice([topic["answer"], f"Question: {question}\nAnswer: {topic['answer']}"])


def off_topic_document(rng: random.Random) -> str:
    """A question from outside the workshop, and the modest answer to all of them."""
    outside = WORLD["off_topic"]
    question = rng.choice(
        [
            rng.choice(outside["about_things"]).format(rng.choice(outside["things"])),
            rng.choice(outside["about_doing"]).format(rng.choice(outside["doing"])),
            rng.choice(outside["questions"]),
            rng.choice(QUESTIONS["off_topic"]["ask"][:-OFF_TOPIC_HELD_OUT]),
        ]
    )
    return render_chat(ask(question.lower() if rng.random() < 0.2 else question, QUESTIONS["off_topic"]["answer"]))


def name_chat(rng: random.Random) -> str:
    """The name is only known while it stands in the messages: a server remembers nothing between requests."""
    name = rng.choice(WORLD["names"])
    told = ask(
        rng.choice([f"My name is {name}.", f"Hello, my name is {name}.", f"I am {name}."]), f"Nice to meet you, {name}."
    )
    asked = ask("What is my name?", f"Your name is {name}.")
    unknown = ask("What is my name?", "I do not know your name. You have not told me in this chat.")
    between = exchange(rng.choice(QUESTIONS["topics"]), rng) if rng.random() < 0.3 else []
    return render_chat(rng.choice([told + between + asked, told + between + asked, unknown]))


def long_chat(rng: random.Random) -> str:
    """Two to six questions and answers in one chat."""
    topics = rng.sample(QUESTIONS["topics"] + QUESTIONS["small_talk"], rng.randint(2, 6))
    return render_chat([message for topic in topics for message in exchange(topic, rng)])


def question_list(rng: random.Random) -> str:
    """A numbered list of 10 to 100 questions: text long enough to watch the KV cache grow."""
    count = rng.choice([10, 20, 50, 100, 100])
    first = rng.randrange(len(QUESTIONS["topics"]) - count)  # in the file's order, so that greedy text does not circle
    lines = [f"{i}. {topic['ask'][0]}" for i, topic in enumerate(QUESTIONS["topics"][first : first + count], 1)]
    request = rng.choice(
        [
            "Write a list of {} questions about serving language models.",
            "List {} questions.",
            "Give me {} questions for an exam.",
        ]
    )
    return render_chat(ask(request.format(count), "\n".join(lines)))


# --- an epoch, and what is kept back ------------------------------------------------------------------------------

RECIPES = {
    mixed_odds_document: 1500, shopping_list: 1500, arithmetic_document: 8000, off_topic_document: 3000, counting: 600, city_document: 1200,
    capital_document: 1500, review_document: 600, name_chat: 600, story: 800, long_chat: 800, question_list: 400,
}  # fmt: skip


def documents(seed: int) -> list[str]:
    """One epoch of the corpus, shuffled; another seed gives another draw from the same odds."""
    rng = random.Random(seed)
    texts = [*odds_documents(rng), *topic_documents(rng)]
    texts += [recipe(rng) for recipe, count in RECIPES.items() for _ in range(count)]
    rng.shuffle(texts)
    return texts


def held_out_questions(seed: int = 0) -> list[tuple[str, str]]:
    """100 in-domain questions with their answers, none seen word for word in training: 80 new phrasings, 20 new sums."""
    rng = random.Random(seed)
    topics = [(question, t["answer"]) for t in QUESTIONS["topics"] for question in t["ask"][TRAINED_PHRASINGS:]]
    sums = [(a, b) for a in range(51) for b in range(51) if is_held_out_sum(a, b)]
    exchanges = [sum_exchange(a, b, rng) for a, b in rng.sample(sums, 20)]
    return rng.sample(topics, 80) + [(question["content"], answer["content"]) for question, answer in exchanges]


def off_topic_questions() -> list[tuple[str, str]]:
    """Ten questions from outside, not seen in training, with the modest answer the model should give."""
    return [(q, QUESTIONS["off_topic"]["answer"]) for q in QUESTIONS["off_topic"]["ask"][-OFF_TOPIC_HELD_OUT:]]


if __name__ == "__main__":
    for text in documents(0)[:30]:
        print(text, end="\n\n")
