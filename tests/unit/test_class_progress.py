"""What an instructor sees of a class: whoever wrote the files, who is stuck, the pictures and what is exported."""

import csv
import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from accounts import full_disk
from hypothesis import given
from hypothesis import strategies as st
from test_progress import events

from helpers import class_plots, class_progress, classroom, progress_plots
from helpers.class_dashboard import stuck_list, tiles
from helpers.class_export import export
from helpers.class_progress import ClassProgressError, Participant, Reader, checks, rows, stuck, table
from helpers.class_server import RECENT, ServerHistory
from helpers.metrics import MetricsError
from helpers.progress_store import RIGHT, SEEN, WRONG, Event, Progress

NOW = 1_795_000_000.0
METRICS = Path(__file__).parent / "metrics"


def participant(name: str, *said: tuple[float, str, str]) -> Participant:
    """One whose checks said so, each so many minutes before NOW."""
    return Participant(name, tuple(sorted(Event(NOW - 60 * ago, check, state) for ago, check, state in said)))


# --- reading -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, who in (("a", "red fox"), ("b", "red fox"), ("c", "Blue Owl")):
        (tmp_path / f"{name}.json").write_text(Progress({Event(1.0, "00.q1", RIGHT)}, who).text())
    return tmp_path


def test_everybody_is_read_and_two_of_a_name_are_told_apart(folder):
    reader = Reader(folder)
    assert [each.name for each in reader.read()] == ["Blue Owl", "red fox", "red fox 2"] and reader.unreadable == []


def test_a_file_that_is_no_progress_is_named_and_harms_nobody(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "secret.json"
    secret.write_text(Progress({Event(1.0, "00.q1", RIGHT)}, "secret").text())
    (folder / "broken.json").write_text('{"events": [')
    (folder / "bytes.json").write_bytes(b"\xff\x00")
    (folder / "deep.json").write_text("[" * 10**5)
    (folder / "large.json").write_bytes(b" " * 2**21)
    (folder / "link.json").symlink_to(secret)
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / ".draft-x").write_text("half of it")
    reader, began = Reader(folder), time.monotonic()
    assert len(reader.read()) == 3 and time.monotonic() - began < 2
    assert reader.unreadable == [
        f"{name}.json" for name in ("broken", "bytes", "deep", "folder", "large", "link", "pipe")
    ]


def test_names_cannot_do_anything(folder):
    for number, name in enumerate(["<script>alert(1)</script>", "a\nb\x1b[31m", "", "   ", "‮x", "$x$ $\\frac{"]):
        (folder / f"evil{number}.json").write_text(Progress({Event(NOW, "01.q1", WRONG)}, name).text())
    people = Reader(folder).read()
    assert all(each.name.isprintable() and 0 < len(each.name) <= 26 for each in people)
    at = {each.name: "01.q1" for each in people}
    grid = progress_plots.class_grid(rows(people, checks(), at), checks())
    grid.canvas.draw()
    shown = stuck_list(stuck(people, NOW + 1800))
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_only_what_has_changed_is_read_anew(folder, monkeypatch):
    reader, read = Reader(folder), []
    real = class_progress.storage.read_regular
    monkeypatch.setattr(
        class_progress.storage, "read_regular", lambda path, most: read.append(path.name) or real(path, most)
    )
    reader.read()
    reader.read()
    assert read == ["a.json", "b.json", "c.json"]
    (folder / "b.json").write_text(Progress({Event(1.0, "00.q1", RIGHT)}, "green newt").text())
    (folder / "c.json").unlink()
    assert [each.name for each in reader.read()] == ["green newt", "red fox"] and read[3:] == ["b.json"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ClassProgressError, match=r"cannot be read \(No such file.* `python -m helpers.classroom open`"):
        Reader(tmp_path / "nowhere").read()


# --- who is stuck --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], None),
        ([(20, "01.q1", SEEN), (19, "01.q1", RIGHT)], None),
        ([(5, "01.q1", WRONG), (4, "01.q1", WRONG)], None),
        ([(5, "01.q1", WRONG), (4, "01.q1", WRONG), (3, "01.q1", WRONG)], "01.q1, 3 wrong tries in 5 min"),
        ([(12, "01.q1", SEEN)], "01.q1, no answer in 12 min"),
        ([(12, "01.q1", SEEN), (2, "01.q1", WRONG)], "01.q1, 1 wrong try in 12 min"),
        ([(30, "01.q1", SEEN), (4, "00.q1", RIGHT), (3, "01.q1", WRONG)], None),
        ([(30, "01.q1", WRONG), (29, "01.q1", WRONG), (28, "01.q1", WRONG), (9, "01.q2", SEEN)], None),
        ([(30, "01.q1", WRONG), (29, "01.q1", WRONG), (28, "01.q1", WRONG), (2, "01.q1", RIGHT)], None),
        ([(90, "01.q1", WRONG), (80, "01.q1", WRONG), (61, "01.q1", WRONG)], None),
        ([(-30, "01.q1", SEEN)], None),
    ],
    ids=["new", "passed", "two tries", "three tries", "long", "long, tried", "passed another", "went on", "passed at last",
         "gone", "a clock that is ahead"],
)  # fmt: skip
def test_who_is_stuck(said, expected):
    found = stuck([participant("red fox", *said)], NOW)
    assert [str(each) for each in found] == ([f"red fox: {expected}"] if expected else [])


def test_the_longest_stuck_come_first_and_the_rules_are_the_instructors():
    people = [participant(str(ago), (ago, "01.q1", SEEN)) for ago in (15, 40, 25)]
    assert [each.name for each in stuck(people, NOW)] == ["40", "25", "15"]
    assert [each.name for each in stuck(people, NOW, minutes=20, gone=30)] == ["25"]


@given(st.lists(st.lists(events, max_size=20), max_size=5), st.floats(0, 4e9))
def test_whatever_the_files_say_everything_can_be_shown(said, now):
    people = [Participant(f"p{number}", tuple(sorted(each))) for number, each in enumerate(said)]
    found = stuck(people, now)
    assert all(each.minutes >= 0 and each.tries >= 0 for each in found)
    shown = rows(people, checks("00"), {each.name: each.exercise for each in found})
    assert len(shown) == len(people) and len(table(people)) == sum(len({e.exercise for e in each}) for each in said)
    assert "class-tiles" in tiles(pd.DataFrame(), people, found)


def test_rows_begin_with_those_who_have_passed_least():
    people = [
        participant("a", (9, "00.q1", RIGHT), (8, "00.q2", RIGHT)),
        participant("b"),
        participant("c", (9, "00.q1", RIGHT)),
    ]
    shown = rows(people, checks("00"), {"c": "00.q2", "b": "05.q1"})
    assert [(row.name, list(row.levels), row.stuck_at) for row in shown] == [
        ("b", [0, 0], None),
        ("c", [3, 0], 1),
        ("a", [3, 3], None),
    ]


@pytest.mark.parametrize("count", [0, 1, 61, 120])
def test_the_class_is_drawn_at_any_size(count):
    people = [participant(f"p{n}", (5, "01.q1", WRONG)) for n in range(count)]
    for lesson in ("", "01"):
        columns = checks(lesson)
        figure = progress_plots.class_grid(rows(people, columns, {"p0": "01.q1"}), columns)
        figure.canvas.draw()
        assert figure.get_label().startswith(
            f"Checks of {count} participants, a row for each; {min(count, 1)} are stuck."
        )


# --- the server ----------------------------------------------------------------------------------------------------------


def metrics_text(prompt=0, generated=0, finished=0, fast=0, slow=0, running=0) -> str:
    """A recorded /metrics with these figures in it; first tokens came within 0.1 s, or between 0.25 and 0.5."""
    text = (METRICS / "idle.txt").read_text()
    kept = [
        line
        for line in text.splitlines()
        if not line.startswith(("vllm:time_to_first_token", "vllm:request_success_total{"))
    ]
    label = 'engine="0",model_name="m"'
    replaced = {
        "vllm:prompt_tokens_total{": prompt, "vllm:generation_tokens_total{": generated, "vllm:num_requests_running{": running,
    }  # fmt: skip
    lines = []
    for line in kept:
        name = next((name for name in replaced if line.startswith(name)), None)
        lines.append(f"{line.rpartition(' ')[0]} {replaced[name]}" if name else line)
    buckets = {"0.1": fast, "0.25": fast, "0.5": fast + slow, "+Inf": fast + slow}
    lines.append("# TYPE vllm:time_to_first_token_seconds histogram")
    lines += [f'vllm:time_to_first_token_seconds_bucket{{{label},le="{le}"}} {n}' for le, n in buckets.items()]
    lines += [
        f"vllm:time_to_first_token_seconds_count{{{label}}} {fast + slow}",
        f"vllm:time_to_first_token_seconds_sum{{{label}}} 1",
    ]
    lines += [
        "# TYPE vllm:request_success_total counter",
        f'vllm:request_success_total{{{label},finished_reason="stop"}} {finished}',
    ]
    return "\n".join(lines) + "\n"


def test_the_servers_history_counts_between_two_looks():
    history = ServerHistory()
    history.add(metrics_text(100, 1000, 10, fast=10, running=3), at=0)
    history.add(metrics_text(400, 1600, 16, fast=10, slow=6), at=30)
    frame = history.frame
    assert frame.index.tolist() == [-0.5, 0] and frame["running"].tolist() == [3, 0]
    last = frame.iloc[-1]
    assert (last.requests_per_minute, last.generated_per_second, last.prompt_per_second) == (12, 20, 10)
    assert (last.requests, last.prompt_tokens, last.generated_tokens) == (16, 400, 1600)
    assert 0.25 < last.ttft_median < 0.5 and pd.isna(frame.iloc[0].ttft_median), (
        "of the six that came since, not the ten before"
    )
    figure = class_plots.server(frame)
    assert figure.get_label() == "The class's server: 0 requests running, 0 waiting, cache 0% full."


def test_old_first_tokens_are_forgotten_and_so_is_the_history():
    history = ServerHistory(seconds=100)
    for second in range(0, 300, 10):
        history.add(metrics_text(generated=second, fast=1 if second < 50 else 5), at=second)
    assert history.moments[0].snapshot.time == 190 and pd.isna(history.moments[-1].ttft_median)
    assert len(history._tables) <= RECENT / 10 + 2


def test_a_server_that_was_restarted_begins_a_new_history():
    history = ServerHistory()
    history.add(metrics_text(generated=500, fast=9), at=0)
    history.add(metrics_text(generated=5, fast=1), at=10)
    assert len(history.moments) == 1 and history.frame["generated_tokens"].tolist() == [5]
    with pytest.raises(MetricsError, match="The server's metrics lack"):
        history.add("# nothing\n", at=20)


# --- exporting -----------------------------------------------------------------------------------------------------------


def test_the_export_holds_everything_and_replaces_nothing(tmp_path):
    people = [
        participant("red fox", (9, "00.q1", SEEN), (8, "00.q1", WRONG), (7, "00.q1", RIGHT)),
        participant('b, "c"\n'),
    ]
    history = ServerHistory()
    history.add(metrics_text(generated=5), at=0)
    made = [export(people, history.frame, tmp_path) for _ in range(2)]
    assert len({path for pair in made for path in pair}) == 4 and {path.stat().st_mode & 0o777 for path in made[0]} == {
        0o600
    }
    (row,) = csv.DictReader(made[0][0].open())
    assert (row["name"], row["check"], row["passed"], row["wrong_tries"]) == ("red fox", "00.q1", "True", "1")
    assert pd.Timestamp(row["passed_at"]).timestamp() == NOW - 420
    found = json.loads(made[0][1].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [each["name"] for each in found["participants"]] == ["red fox", 'b, "c"\n'] and len(
        found["participants"][0]["events"]
    ) == 3
    assert found["server"][0]["generated_tokens"] == 5 and found["server"][0]["ttft_median"] is None


def test_a_formula_in_a_name_stays_a_name(tmp_path):
    (made, _) = export([participant("=1+1", (9, "00.q1", RIGHT))], pd.DataFrame(), tmp_path)
    assert next(csv.DictReader(made.open()))["name"] == "'=1+1", "a spreadsheet would compute it"


def test_an_export_that_fails_leaves_nothing(tmp_path):
    people = [participant("a", (9, "00.q1", RIGHT))]
    small, large = sorted(export(people, pd.DataFrame(), tmp_path), key=lambda path: path.stat().st_size)
    for room in (0, small.stat().st_size):  # for none, and for one of the two
        with full_disk(room), pytest.raises(ClassProgressError, match="Nothing is exported: .* has no room left"):
            export(people, pd.DataFrame(), tmp_path)
    with pytest.raises(ClassProgressError, match="Nothing is exported: .*nowhere is not there"):
        export([], pd.DataFrame(), tmp_path / "nowhere")
    assert set(tmp_path.iterdir()) == {small, large} and small.suffix == ".csv"


def test_the_command_exports_as_well(folder, tmp_path_factory, capsys):
    shared, out = tmp_path_factory.mktemp("class"), tmp_path_factory.mktemp("out")
    folder.rename(shared / "progress")
    (shared / "progress/broken.json").write_text("{")
    assert classroom.main(["--folder", str(shared), "export", "--to", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 participants: ") and "Left out, for they are no progress files: broken.json" in said
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".json"]
