"""What a batch reads: every format, and every bad line named by its number while the others are read."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from helpers.batch_files import CHAT, COMPLETIONS, MIB, Defaults, Input, InputError, LineError, Request, check_fields
from helpers.batch_survey import survey, unique

ROOT = Path(__file__).parents[2]


def line(name="a", **changes):
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body} | changes)


def read(tmp_path, content, name="in.jsonl", defaults=None, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = Input(path, defaults, **options)
    return list(unique(source.read(), survey(source).suspects))


def seen(items):
    """Line -> the name of its request, or the code of its error."""
    return {item.line: item.custom_id if isinstance(item, Request) else item.code for item in items}


# --- formats -------------------------------------------------------------------------------------------------------


def test_the_openai_batch_format(tmp_path):
    (one,) = read(tmp_path, line("first", url=COMPLETIONS, body={"prompt": "Once", "max_tokens": 5}))
    assert one == Request(1, "first", COMPLETIONS, {"prompt": "Once", "max_tokens": 5})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", "What is TP?\n\nWhat is PP?"),
        ("in.jsonl", '"What is TP?"\n\n"What is PP?"\n'),
        ("in.csv", 'id,prompt\n7,What is TP?\n8,"What is PP?"\n'),
    ],
)
def test_plain_prompts(tmp_path, name, content):
    first, second = read(tmp_path, content, name, Defaults(body={"max_tokens": 9}))
    assert first.body == {"max_tokens": 9, "messages": [{"role": "user", "content": "What is TP?"}]}
    assert [second.line, second.custom_id, second.url] == [3, "line-3", CHAT]
    assert second.body["messages"][0]["content"] == "What is PP?"


def test_prompts_may_be_texts_to_continue(tmp_path):
    (one,) = read(tmp_path, "Once upon", "in.txt", Defaults(url=COMPLETIONS))
    assert (one.url, one.body) == (COMPLETIONS, {"prompt": "Once upon"})


def test_a_column_and_names_of_a_csv_file_and_cells_that_span_lines(tmp_path):
    content = 'custom_id,question\na,"first\nsecond"\nb,third\n'
    one, two = read(tmp_path, content, "in.csv", Defaults(column="question"))
    assert (one.line, one.custom_id, one.body["messages"][0]["content"]) == (2, "a", "first\nsecond")
    assert (two.line, two.custom_id) == (4, "b")


def test_what_a_line_says_wins_over_defaults(tmp_path):
    body = {"messages": [], "temperature": 1, "seed": 5}
    one, two, three = read(
        tmp_path,
        "\n".join([line("a", body=body), line("b"), line("c", body={"messages": [], "temperature": 0})]),
        defaults=Defaults(body={"max_tokens": 3}, seed=100),
    )
    assert one.body == {"max_tokens": 3, **body}
    assert two.body["seed"] == 102 and "seed" not in three.body, "a seed of its own; none where nothing is drawn"


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match="takes pyarrow, which is not installed. Run `pip install -r requirements/parquet.txt`, or"
    ):
        read(tmp_path, b"PAR1", "in.parquet")


PARQUET = """
import pandas
from helpers.batch_files import Defaults, Input, InputError

pandas.DataFrame({"custom_id": ["a", "b"], "prompt": ["one", None]}).to_parquet("in.parquet")
for item in Input("in.parquet").read():
    print(item.line, getattr(item, "code", "") or item.custom_id)
for name, defaults in ("in.parquet", Defaults(column="text")), ("broken.parquet", Defaults()):
    open("broken.parquet", "wb").write(b"PAR1")
    try:
        list(Input(name, defaults).read())
    except InputError as error:
        print(error)
"""


def test_parquet(tmp_path):
    """In a process of its own, with pyarrow beside the pins: in them it would change the strings of every table."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "extra"]
    subprocess.run([*install, "-r", ROOT / "requirements" / "parquet.txt"], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'extra'}"}
    done = subprocess.run(
        [sys.executable, "-c", PARQUET], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    one, two, column, broken = done.stdout.splitlines()
    assert (one, two) == ("1 a", "2 no_prompt")
    assert "no column 'text'" in column and "is no Parquet file" in broken


# --- bad input: the number of the line and the reason; good lines are read ------------------------------------------


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (b"{", "invalid_json", "no JSON"),
        (b"[" * 100_000, "invalid_json", "no JSON"),
        (b"17", "invalid_request", "neither a JSON object nor a string"),
        (b'"\xff"', "invalid_utf8", "byte 2 is not UTF-8"),
        (b'{"body": {}}', "no_custom_id", 'no "custom_id"'),
        (line(name="").encode(), "no_custom_id", 'no "custom_id"'),
        (line(name="\ud800").encode(), "no_custom_id", 'no "custom_id"'),
        (line("x", method="GET").encode(), "invalid_request", "'GET'; it must be \"POST\""),
        (line("x", url="/v1/embeddings").encode(), "invalid_request", "'/v1/embeddings'; it must be /v1/chat"),
        (line("x", url=["a"]).encode(), "invalid_request", "must be /v1/chat"),
        (line("x", body="Hello").encode(), "invalid_request", '"body" is missing or no object'),
        (line("x", body={"messages": [], "stream": True}).encode(), "invalid_request", '"stream" has no place'),
        (line("x", boddy={}).encode(), "invalid_request", "unknown fields: boddy. A line has body, custom_id"),
        (line("first").encode(), "duplicate_custom_id", "'first' stands on line 1 already; only that one"),
        (b'"%s"' % (b"a" * 2**20), "line_too_long", "1.0 MiB in one line; at most"),
        (b'" "', "no_prompt", "no prompt here"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, bad, code, words):
    content = line("first").encode() + b"\n" + bad + b"\n" + line("third").encode()
    first, error, third = read(tmp_path, content, max_line=2**19)
    assert (first.custom_id, third.custom_id, third.line) == ("first", "third", 3)
    assert isinstance(error, LineError) and (error.line, error.code) == (2, code)
    assert words in error.message


def test_names_may_differ_from_those_of_other_lines_in_case_or_blanks(tmp_path):
    items = read(tmp_path, "\n".join(line(name) for name in ("a", "A", "a ", "b", "a", "b")))
    assert list(seen(items).values()) == ["a", "A", "a ", "b", "duplicate_custom_id", "duplicate_custom_id"]
    assert items[4].custom_id is None, "the name is in the answers once, and nowhere else"


def test_windows_line_ends_and_its_mark_at_the_beginning(tmp_path):
    content = b"\xef\xbb\xbf" + f"{line('a')}\r\n\r\n{line('b')}\r\n".encode()
    assert seen(read(tmp_path, content)) == {1: "a", 3: "b"}
    one, two = read(tmp_path, b"\xef\xbb\xbfprompt\r\nHello\r\nWorld\r\n", "in.csv")
    assert [one.body["messages"][0]["content"], two.line] == ["Hello", 3]


@pytest.mark.parametrize(
    ("row", "code"),
    [(b"one,two,three", "invalid_csv"), (b"one", "invalid_csv"), (b"x,\xff", "invalid_utf8"), (b"x,", "no_prompt")],
)
def test_a_bad_row_of_a_csv_file(tmp_path, row, code):
    items = read(tmp_path, b"id,prompt\n1,first\n" + row + b"\n3,third\n", "in.csv")
    assert seen(items) == {2: "line-2", 3: code, 4: "line-4"}


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "csv"])
def test_a_line_of_100_mb_takes_no_memory(tmp_path, suffix):
    path = tmp_path / f"in.{suffix}"
    with open(path, "wb") as file:
        file.write({"jsonl": b'"first"\n"', "txt": b"first\n", "csv": b"prompt\nfirst\n"}[suffix])
        for _ in range(100):
            file.write(b"a" * 10**6)
        file.write({"jsonl": b'"\n"last"\n', "txt": b"\nlast\n", "csv": b"\nlast\n"}[suffix])
    tracemalloc.start()
    items = list(Input(path, max_line=MIB).read())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(item) for item in items] == [Request, LineError, Request]
    assert items[1].line == items[0].line + 1 and items[1].code == "line_too_long" and "95.4 MiB" in items[1].message
    assert peak < 20 * MIB


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.jsonl", b"", "is empty. Put a request"),
        ("in.jsonl", b"\r\n \n", "nothing but blank lines"),
        ("in.json", b"{}", "ends in none of .jsonl"),
        ("in.csv", b"question\nWhat?\n", "no column 'prompt'"),
        ("in.csv", b"\n", "no column 'prompt'"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, content, name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.jsonl is missing"):
        Input(tmp_path / "no.jsonl")


def test_the_digest_of_a_beginning(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    short = Input(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    long = Input(tmp_path / "b.txt")
    assert long.digest(4) == short.digest() != long.digest()


def test_fields_that_vllm_does_not_know():
    check_fields({"max_tokens": 3}, frozenset({"max_tokens"}))
    check_fields({"anything": 3}, None)
    with pytest.raises(LineError, match="unknown fields in the body: max_token$"):
        check_fields({"max_token": 3}, frozenset({"max_tokens"}))


def test_suspects_are_few_where_names_differ(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(line(f"n{i}") + "\n" for i in range(5000)))
    found = survey(Input(tmp_path / "in.jsonl"), lambda number: number % 2)
    assert (found.lines, found.last, found.suspects) == (2500, 5000, frozenset())
