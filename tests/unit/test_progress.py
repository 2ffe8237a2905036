"""A learner's progress: kept at home whatever happens to the disk, the file or the other notebook, and shared only if asked."""

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accounts import full_disk
from hypothesis import given
from hypothesis import strategies as st

from helpers import checks, class_folder, progress, progress_store, storage
from helpers.exercises import lesson_00, lesson_01
from helpers.progress import PASSED, SEEN, TO_COME, TRIED, ProgressError, exercises, standing
from helpers.progress_store import RIGHT, WRONG, Event, Progress, parse, trimmed

ROOT = Path(__file__).parents[2]
CHECKS = [f"{lesson}.{name}" for lesson, names in exercises().items() for name in names]
events = st.builds(
    Event,
    st.floats(0, 2e9).map(lambda t: round(t, 3)),
    st.sampled_from(CHECKS[:6]),
    st.sampled_from(progress_store.STATES),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A new learner in a class."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSHOP_CLASS", str(tmp_path / "class"))
    monkeypatch.setattr(progress_store, "_ours", set())
    class_folder.prepare(tmp_path / "class", everybody=True)
    return tmp_path / "home"


def kept() -> set[tuple[str, str]]:
    """(check, state) of all events in the file at home."""
    return {(event.exercise, event.state) for event in parse(progress_store.path().read_text()).events}


def shared_files(home: Path) -> list[Path]:
    return sorted((home.parent / "class/progress").iterdir())


def a_new_kernel(monkeypatch) -> None:
    monkeypatch.setattr(progress_store, "_ours", set())


# --- kept at home -----------------------------------------------------------------------------------------------------


def test_what_a_check_says_is_kept(home):
    for answer in (..., 2048, 1900, 148, 2048):
        assert lesson_00.q2(answer).note == ""
    assert kept() == {("00.q2", "seen"), ("00.q2", WRONG), ("00.q2", RIGHT)}
    assert len(parse(progress_store.path().read_text()).events) == 5, "three wrong tries, each of them"
    assert stat.S_IMODE(progress_store.path().stat().st_mode) == 0o600
    stands = standing(progress_store.load()[0].events)
    assert stands["00.q2"] == PASSED and stands["00.q1"] == TO_COME, "a wrong answer afterwards takes nothing back"
    table = progress.table()
    assert table.loc["00"].to_dict() == {"checks": 2, "passed": 1, "wrong_tries": 3}


def test_only_lessons_checks_are_kept(home):
    checks.choice("b", "why", tip="tip", misconceptions={})("b")
    assert not home.exists() and progress_store.name_of(lesson_01.q3) == "01.q3"


def test_standing_is_the_best_that_a_check_has_said():
    found = standing({Event(1, "00.q1", "seen"), Event(2, "01.q1", WRONG), Event(3, "77.q1", RIGHT)})
    assert (found["00.q1"], found["01.q1"], found["01.q2"]) == (SEEN, TRIED, TO_COME) and "77.q1" not in found


def test_wrong_tries_beyond_many_are_not_kept(home):
    for _ in range(progress_store.MOST_WRONG + 20):
        progress_store.record("01.q1", WRONG)
    assert len(parse(progress_store.path().read_text()).events) == progress_store.MOST_WRONG


def test_a_full_disk_is_named_and_loses_nothing(home):
    lesson_00.q2(148)
    with full_disk():
        verdict = lesson_01.q1(810)
    assert verdict.state == checks.RIGHT
    assert f"Your progress is not kept yet: {home} has no room left" in verdict.note and verdict.note in repr(verdict)
    assert "<small>Your progress is not kept yet" in verdict._repr_html_()
    assert kept() == {("00.q2", RIGHT)} and [p.name for p in home.glob(".*")] == [], "the old file is whole"
    assert lesson_01.q2(131.4).note == ""
    assert kept() >= {("00.q2", RIGHT), ("01.q1", RIGHT), ("01.q2", RIGHT)}


def test_a_home_that_cannot_be_written_is_named(home, monkeypatch):
    home.write_text("a file where the folder should be")
    assert "is not kept yet" in lesson_00.q2(148).note
    home.unlink()
    assert lesson_00.q2(1).note == "" and ("00.q2", RIGHT) in kept()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"events": 3}', b"\xff\xfe\x00", b"[" * 100_000, b'{"events": {}}'],
)
def test_a_damaged_file_is_set_aside_and_nothing_of_this_kernel_is_lost(home, damage):
    lesson_00.q2(148)
    progress_store.path().write_bytes(damage)
    note = lesson_01.q1(810).note
    assert "could not be read: it is kept as" in note and "a new one is begun" in note
    assert kept() == {("00.q2", RIGHT), ("01.q1", RIGHT)}
    (aside,) = home.glob("progress-unreadable-*.json")
    assert aside.read_bytes() == damage and lesson_01.q1(405).note == ""


def test_notebooks_at_once_lose_nothing(home):
    """Four processes, twenty tries each, as fast as they can."""
    code = "import sys; from helpers import progress_store as p\nfor _ in range(20): assert p.record(sys.argv[1], 'wrong') == ''"
    names = CHECKS[:4]
    writers = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in names]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = parse(progress_store.path().read_text()).events
    assert {name: sum(event.exercise == name for event in found) for name in names} == dict.fromkeys(names, 20)


def test_what_another_writer_has_dropped_comes_back_with_the_next_check(home):
    lesson_00.q2(148)
    progress_store.path().write_text(Progress({Event(5.0, "02.q1", RIGHT)}).text())
    lesson_01.q1(810)
    assert kept() == {("00.q2", RIGHT), ("02.q1", RIGHT), ("01.q1", RIGHT)}


def test_a_lock_that_somebody_keeps_holds_nobody_up_for_long(home):
    lesson_00.q2(1)
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, progress_store.path().with_suffix(".lock")], stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        with storage.alone(progress_store.path().with_suffix(".lock"), patience=0.1) as got:
            assert not got
        began = time.monotonic()
        assert lesson_00.q2(148).note == "" and 1 < time.monotonic() - began < 5
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert ("00.q2", RIGHT) in kept()


# --- shared with the class ----------------------------------------------------------------------------------------------


def test_nothing_is_shared_unasked_and_all_of_it_when_asked(home):
    lesson_00.q2(148)
    assert shared_files(home) == []
    said = progress.share()
    (file,) = shared_files(home)
    found = parse(file.read_text())
    assert f"Your instructor sees you as {found.name}: " in said and len(found.name.split()) == 2
    assert found.events == parse(progress_store.path().read_text()).events
    lesson_01.q1(405)
    assert len(parse(file.read_text()).events) == 2 and shared_files(home) == [file]
    assert progress.share().startswith(f"You share your progress already, as {found.name}.")
    assert progress.stop_sharing().startswith("Your progress is no longer shared") and shared_files(home) == []
    lesson_01.q1(810)
    assert shared_files(home) == [] and len(kept()) == 3
    assert progress.stop_sharing() == "You do not share your progress."


def test_a_name_of_ones_own(home):
    progress.share("first")
    assert ["as", "second", "row"][0] in progress.share("  second   row ")
    (file,) = shared_files(home)
    assert parse(file.read_text()).name == "second row", "the file of the first name is gone"
    for name in ("x" * 25, "bell\a", "‮evil"):
        with pytest.raises(ProgressError, match="does not do: up to 24 letters"):
            progress.share(name)
    assert shared_files(home) == [file]


def test_a_folder_that_goes_away_is_named_and_comes_back_with_everything(home, monkeypatch):
    progress.share()
    folder = home.parent / "class/progress"
    folder.rename(folder.with_name("away"))
    note = lesson_00.q2(148).note
    assert f"Your class does not see this yet: {folder} is not there. Yours is not lost." in note
    assert "`progress.stop_sharing()` ends the sharing" in note and ("00.q2", RIGHT) in kept()
    folder.with_name("away").rename(folder)
    a_new_kernel(monkeypatch)
    assert lesson_01.q1(810).note == ""
    (file,) = shared_files(home)
    assert {event.exercise for event in parse(file.read_text()).events} == {"00.q2", "01.q1"}


def test_a_full_class_folder_keeps_the_old_copy(home, monkeypatch):
    progress.share()
    lesson_00.q2(148)
    (file,) = shared_files(home)
    before = file.read_text()
    with full_disk():
        assert "Your class does not see this yet: " in lesson_01.q1(810).note
    assert file.read_text() == before and shared_files(home) == [file]
    assert lesson_01.q1(1).note == "" and "01.q1" in file.read_text()


def test_what_is_lost_at_home_comes_back_from_the_class(home, monkeypatch):
    progress.share()
    lesson_00.q2(148)
    progress_store.path().unlink()
    a_new_kernel(monkeypatch)
    lesson_01.q1(810)
    assert kept() == {("00.q2", RIGHT), ("01.q1", RIGHT)}


def test_without_a_class_there_is_none_to_share_with(home, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKSHOP_CLASS", str(tmp_path / "other"))
    with pytest.raises(ProgressError, match="takes no progress yet: its instructor runs"):
        progress.share()
    monkeypatch.delenv("WORKSHOP_CLASS")
    with pytest.raises(ProgressError, match="There is no class here to share with"):
        progress.share()
    with full_disk(), pytest.raises(ProgressError, match="is not shared: .*progress has no room left"):
        monkeypatch.setenv("WORKSHOP_CLASS", str(home.parent / "class"))
        progress.share()
    assert shared_files(home) == [] and progress_store.sharing() is None


# --- the files ----------------------------------------------------------------------------------------------------------


@given(st.sets(events, max_size=30), st.text(max_size=20))
def test_what_is_written_is_read_back(some, name):
    found = parse(Progress(some, name).text())
    assert found.events == trimmed(some) == trimmed(trimmed(some)) and found.name == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["events", "name", "version"]), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_progress_or_a_value_error(value):
    for text in (
        json.dumps(value),
        json.dumps({"name": value, "events": value}),
        json.dumps({"events": [value, [1, value, "seen"]]}),
    ):
        try:
            found = parse(text)
        except ValueError:
            continue
        assert all(isinstance(event, Event) and event.exercise for event in found.events)


@given(st.sets(events), st.sets(events))
def test_merging_in_any_order_gives_the_same(one, other):
    assert trimmed(trimmed(one) | other) == trimmed(one | trimmed(other)) == trimmed(one | other)


def test_the_courses_checks_are_those_of_its_modules():
    import importlib

    for lesson, names in exercises().items():
        module = importlib.import_module(f"helpers.exercises.lesson_{lesson}")
        theirs = {name for name, value in vars(module).items() if isinstance(value, checks.Exercise)}
        assert theirs == set(names), lesson
    assert len(exercises()) >= 9


def test_the_picture_says_in_words_what_it_shows(home):
    lesson_00.q2(148)
    figure = progress.picture()
    assert figure.get_label() == f"Your progress: 1 of {len(CHECKS)} checks passed, a row of boxes for each lesson."
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert words.count("✓") == 1 and "1 of 2" in words
