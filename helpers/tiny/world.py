"""The parts of the corpus about the wide world: sums, counting, cities, capitals, reviews and stories."""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
WORLD = json.loads((HERE / "world.json").read_text())


def render_chat(messages: list[dict[str, str]], answer_next: bool = False) -> str:
    """Messages (`role`, `content`) as the one string the model sees; the tokenizer's chat template says the same."""
    text = "".join(f"<|{m['role']}|>{m['content']}{END}" for m in messages)
    return text + ASSISTANT if answer_next else text


def ask(question: str, answer: str) -> list[dict[str, str]]:
    """The two messages of a question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# --- sums and counting --------------------------------------------------------------------------------------------


def is_held_out_sum(a: int, b: int) -> bool:
    """One sum in twenty is kept out of training, to test whether the model adds or remembers."""
    return (a * 31 + b * 17) % 20 == 7


def sum_exchange(a: int, b: int, rng: random.Random) -> list[dict[str, str]]:
    """A question for a + b, in one of three forms, and its answer."""
    question = rng.choice([f"What is {a} plus {b}?", f"What is {a} + {b}?", f"Add {a} and {b}."])
    return ask(question, f"{a} plus {b} is {a + b}.")


def arithmetic_document(rng: random.Random) -> str:
    """A sum (none that is held out), a difference or a product, as a formula or as a chat."""
    kind = rng.choice(["sum", "sum", "sum in words", "difference", "product"])
    a, b = rng.randint(0, 50), rng.randint(0, 50)
    if kind.startswith("sum"):
        while is_held_out_sum(a, b):
            a, b = rng.randint(0, 50), rng.randint(0, 50)
        return f"{a} + {b} = {a + b}" if kind == "sum" else render_chat(sum_exchange(a, b, rng))
    if kind == "difference":
        a, b = max(a, b), min(a, b)
        return rng.choice(
            [f"{a} - {b} = {a - b}", render_chat(ask(f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."))]
        )
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return rng.choice(
        [f"{a} x {b} = {a * b}", render_chat(ask(f"What is {a} times {b}?", f"{a} times {b} is {a * b}."))]
    )


def counting(rng: random.Random) -> str:
    """A chat that counts from one number to another, 100 at most or three further."""
    first = rng.choice([1, 1, rng.randint(1, 80)])
    last = rng.choice([100, 20, 50, 10, rng.randint(5, 100)])
    last = max(last, first + 3)
    return render_chat(ask(f"Count from {first} to {last}.", ", ".join(map(str, range(first, last + 1))) + "."))


# --- places, people, reviews --------------------------------------------------------------------------------------


def city_sentences(city: str) -> tuple[str, str]:
    """Where a city lies, and what it is known for."""
    where, (a, b, c) = WORLD["cities"][city]
    return f"{city} is a city in {where}.", f"It is known for {a}, {b} and {c}."


def city_exchange(city: str, rng: random.Random) -> list[dict[str, str]]:
    """A question about a city, answered in two sentences or, two times in five, as JSON."""
    place, fame = city_sentences(city)
    if rng.random() < 0.4:
        where, known = WORLD["cities"][city]
        as_json = json.dumps({"city": city, "region": where, "known_for": known[0]})
        return ask(
            rng.choice([f"Describe {city} as JSON.", f"Give me {city} as JSON.", f"{city} in JSON, please."]), as_json
        )
    question = rng.choice(
        [f"Where is {city}?", f"Tell me about {city}.", f"What is {city} known for?", f"Describe {city}."]
    )
    return ask(question, f"{place} {fame}")


def city_document(rng: random.Random) -> str:
    """A city in a chat or in plain sentences."""
    city = rng.choice(sorted(WORLD["cities"]))
    if rng.random() < 0.7 or city == "San Francisco":  # "San Francisco is a" has stated odds: leave them alone
        return render_chat(city_exchange(city, rng))
    return " ".join(city_sentences(city))


def capital_document(rng: random.Random) -> str:
    """A country's capital as a sentence, as a quiz with four choices, or as a chat."""
    country, city = rng.choice(sorted(WORLD["capitals"].items()))
    fact = f"The capital of {country} is {city}."
    question = rng.choice(
        [
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Name the capital of {country}.",
        ]
    )
    wrong = rng.sample(sorted(set(WORLD["capitals"].values()) - {city}), 3)
    choices = rng.sample([city, *wrong], 4)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    quiz = f"Question: {question}\n{listed}\nAnswer: {'ABCD'[choices.index(city)]}. {city}"
    return rng.choice([fact, quiz, render_chat(ask(question, fact))])


def review_document(rng: random.Random) -> str:
    """A review of two sentences, and whether it is positive or negative."""
    label = rng.choice(["positive", "negative"])
    text = ". ".join(rng.sample(WORLD["reviews"][label], 2)) + "."
    return render_chat(ask(f"Is this review positive or negative? {text}", label))


def story(rng: random.Random) -> str:
    """A story of seven sentences from interchangeable parts, alone or as the answer to a request."""
    part = {name: rng.choice(options) for name, options in WORLD["story"].items()}
    hero = part["hero"].split()[-1]
    lines = [
        f"Once upon a time there was {part['hero']} who lived in {part['place']} and wished {part['wish']}.",
        f"{part['morning']}, so the {hero} set out.",
        f"On the road the {hero} met {part['helper']}, who said: {part['advice']}.",
        f"{part['trouble']}, {part['turn']}.",
        *(f"{line}." for line in rng.sample(WORLD["story"]["work"], 2)),
        f"{part['end']}.",
    ]
    text = " ".join(lines)
    request = rng.choice([f"Tell me a story about {part['hero']}.", "Tell me a story."])
    return render_chat(ask(request, text)) if rng.random() < 0.7 else text
