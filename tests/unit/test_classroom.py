"""A class's folder and its keys: what each account may do there, and what an instructor is told."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from accounts import as_root, full_disk, run_as

from helpers import class_folder, class_keys, classroom, connections, server
from helpers.class_folder import ClassFolderError, prepare
from helpers.class_keys import ClassKeyError, own
from helpers.connections import Connection
from helpers.registered_keys import BLOCKED, digest_of, read

ROOT = Path(__file__).parents[2]
TEACHER, ADA, BERT, STRANGER, CLASS, OTHER = 61000, 61001, 61002, 61003, 62000, 62001


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """A class that is open to everybody, and a home."""
    monkeypatch.setenv("WORKSHOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSHOP_CLASS", str(tmp_path / "class"))
    prepare(tmp_path / "class", everybody=True)
    return tmp_path / "class"


def command(capsys, *arguments: object) -> tuple[int, str]:
    code = classroom.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, (printed.out or printed.err).strip()


# --- a participant's own key -------------------------------------------------------------------------------------------


def test_a_key_is_made_once_kept_at_home_and_only_its_digest_is_shared(shared):
    before = os.umask(0)
    try:
        key = own(shared)
    finally:
        os.umask(before)
    assert own(shared) == key and len(key) > 32
    kept = class_keys.kept_at(shared)
    assert kept.read_text() == key and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    (registered,) = (shared / "keys").iterdir()
    assert (
        registered.read_text().strip() == digest_of(key.encode()) and stat.S_IMODE(registered.stat().st_mode) == 0o644
    )
    assert own(shared.parent / "class/../class") != ""


def test_each_class_gets_another_key(shared, tmp_path):
    prepare(tmp_path / "second", everybody=True)
    assert own(shared) != own(tmp_path / "second")


def test_a_lost_or_damaged_key_is_made_anew(shared):
    first = own(shared)
    for damage in ("", "u0", "\x00" * 40, first[3:]):
        class_keys.kept_at(shared).write_text(damage)
        key = own(shared)
        assert key != first and read(str(shared / "keys"), class_keys.name_of_user()) == digest_of(key.encode())
    class_keys.kept_at(shared).write_bytes(b"\xff\xfe")
    assert len(own(shared)) > 32
    (shared / "keys" / class_keys.name_of_user()).unlink()
    assert read(str(shared / "keys"), class_keys.name_of_user()) == "" and own(shared)
    assert read(str(shared / "keys"), class_keys.name_of_user())


def test_notebooks_that_start_together_agree_on_one_key(shared):
    children = []
    for _ in range(8):
        if not (child := os.fork()):
            own(shared)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert len(list((shared / "keys").iterdir())) == 1
    key = class_keys.kept_at(shared).read_text()
    assert read(str(shared / "keys"), class_keys.name_of_user()) == digest_of(key.encode())


def test_what_stands_in_the_way_of_a_key_is_named(shared, tmp_path):
    with pytest.raises(
        ClassKeyError, match="has no folder for keys: its instructor runs `python -m helpers.classroom open"
    ):
        own(tmp_path / "nowhere")
    with (
        full_disk(),
        pytest.raises(ClassKeyError, match="cannot be kept at home. .* has no room left: .* Then connect again"),
    ):
        own(shared)
    assert not list((tmp_path / "home/class").glob("*.key")) and not list((shared / "keys").iterdir())
    own(shared)
    (shared / "keys" / class_keys.name_of_user()).unlink()
    with full_disk(), pytest.raises(ClassKeyError, match=r"cannot be registered. .*class/keys has no room left"):
        own(shared)
    assert not list((shared / "keys").iterdir()), "no draft is left"
    assert own(shared)


@as_root
def test_accounts_can_add_their_own_key_and_do_nothing_to_others():
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        shared, homes = Path(place) / "class", Path(place) / "homes"
        homes.mkdir()
        os.chmod(homes, 0o777)
        shared.mkdir()
        os.chown(shared, TEACHER, CLASS)
        assert not isinstance(run_as(TEACHER, [OTHER, CLASS], lambda: _prepared(shared)), BaseException)
        modes = {name: stat.S_IMODE((shared / name).stat().st_mode) for name in ("keys", "progress", "servers")}
        assert modes == {"keys": 0o1730, "progress": 0o1730, "servers": 0o2750} and shared.stat().st_gid == CLASS

        def key_of(uid, group):
            return run_as(uid, [group], lambda: _own(shared, homes / str(uid)))

        ada, bert = key_of(ADA, CLASS), key_of(BERT, CLASS)
        assert ada.startswith(f"u{ADA}.") and bert.startswith(f"u{BERT}.")
        keys = shared / "keys"
        for attack in (
            lambda: list(keys.iterdir()),
            lambda: (keys / f"u{BERT}").unlink(),
            lambda: os.replace(homes / str(ADA) / "bait", keys / f"u{BERT}"),
            lambda: (keys / f"u{BERT}").write_text("mine"),
        ):
            (homes / str(ADA) / "bait").write_text("mine")
            os.chown(homes / str(ADA) / "bait", ADA, CLASS)
            assert isinstance(run_as(ADA, [CLASS], attack), PermissionError)
        stranger = key_of(STRANGER, OTHER)
        assert f"You may not enter {shared}, which belongs to the group {CLASS}; you are in {OTHER}. Ask" in str(
            stranger
        )
        os.chmod(shared, 0o2755)
        stranger = key_of(STRANGER, OTHER)
        assert f"You may not write to {keys}, which belongs to the group {CLASS}; you are in {OTHER}. Ask" in str(
            stranger
        )

        run_as(ADA, [CLASS], lambda: (keys / "u61009").write_text(digest_of(b"u61009.abc")))
        assert not read(str(keys), "u61009"), "whose name it is not"
        blocked = run_as(
            TEACHER, [CLASS], lambda: [class_keys.block(shared, f"u{ADA}"), class_keys.registered(shared)][1]
        )
        assert {each.name: each.blocked for each in blocked} == {f"u{ADA}": True, f"u{BERT}": False}
        assert "was taken back: ask your instructor" in str(key_of(ADA, CLASS))
        assert isinstance(run_as(ADA, [CLASS], (keys / f"u{ADA}").unlink), PermissionError)
        assert "who alone can do this" in str(run_as(BERT, [CLASS], lambda: class_keys.block(shared, f"u{ADA}")))
        run_as(TEACHER, [CLASS], lambda: class_keys.allow(shared, f"u{ADA}"))
        assert key_of(ADA, CLASS) == ada


def _prepared(shared: Path) -> str:
    group = class_folder._group
    class_folder._group = lambda *_: CLASS  # the machine has no name for it
    try:
        prepare(shared)
    except KeyError:
        return "made"  # for the same reason
    finally:
        class_folder._group = group


def _own(shared: Path, home: Path) -> str:
    os.environ["WORKSHOP_HOME"] = str(home)
    return own(shared)


# --- the instructor's commands -----------------------------------------------------------------------------------------


def test_keys_are_handed_out_listed_blocked_and_removed(shared, tmp_path, capsys):
    code, said = command(capsys, "hand-out", 12, "--to", tmp_path / "out")
    assert code == 0 and "guest-01.key, guest-02.key, " in said
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files[::11]] == ["guest-01.key", "guest-12.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert len({path.read_text() for path in files}) == 12
    own(shared)
    assert command(capsys, "block", "guest-03")[0] == 0 and read(str(shared / "keys"), "guest-03") == BLOCKED
    code, said = command(capsys, "keys")
    assert code == 0 and said.endswith("Keys: 13") and said.count("taken back") == 1 and said.count("handed out") == 12
    assert command(capsys, "allow", "guest-03")[0] == 0 and not (shared / "keys/guest-03").exists()
    assert command(capsys, "close") == (
        0,
        "12 files of keys and progress are removed. Participants keep their own progress at home.",
    )
    assert command(capsys, "keys") == (0, "Nobody has a key yet: a participant gets one by connecting.")


@pytest.mark.parametrize("name", ["Ada", "u7", "ada b", "../ada", "", "ada.b", "-ada", "a" * 40, "ädа"])
def test_names_that_are_none_are_refused_before_anything_is_made(shared, tmp_path, capsys, name):
    with pytest.raises(ClassKeyError, match="is no name for a key"):
        class_keys.hand_out(shared, ["ada", name], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list((shared / "keys").iterdir())


def test_bad_commands_are_answered_in_one_sentence(shared, tmp_path, monkeypatch, capsys):
    for arguments, sentence in [
        (["block", "nobody"], "No key is called nobody: `python -m helpers.classroom keys` lists them."),
        (["allow", "../keys"], "No key is called ../keys"),
        (["--folder", tmp_path, "keys"], "python -m helpers.classroom open"),
        (["--folder", tmp_path / "x", "export"], "cannot be read (No such file or directory)"),
        (["--folder", tmp_path / "x", "close"], "0 files are removed, and then: "),
        (["open", tmp_path / "new", "--group", "nosuchgroup"], "There is no group nosuchgroup on this machine"),
        (["open", "/proc/class"], "The class's folder is the instructor's own."),
    ]:
        code, said = command(capsys, *arguments)
        assert code == 2 and sentence in said and said.count("\n") == 0, said
    monkeypatch.delenv("WORKSHOP_CLASS")
    assert command(capsys, "keys") == (2, "Which class? Name its folder with --folder, or set WORKSHOP_CLASS.")
    with full_disk(), pytest.raises(ClassKeyError, match="has no room left"):
        class_keys.hand_out(shared, ["ada"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not list((shared / "keys").iterdir())


def test_a_class_is_for_its_group_unless_everybody_is_said(tmp_path, capsys):
    os.chmod(tmp_path, 0o755)
    with pytest.raises(ClassFolderError, match="Every account of this machine may enter .* or say --everybody"):
        prepare(tmp_path / "open")
    os.chmod(tmp_path, 0o750)  # as class_install --group leaves it
    group = prepare(tmp_path / "closed")
    assert group and (tmp_path / "closed/keys").stat().st_gid == tmp_path.stat().st_gid
    assert stat.S_IMODE((tmp_path / "closed/keys").stat().st_mode) == 0o1730
    (tmp_path / "closed/keys/ada").write_text("x")
    assert prepare(tmp_path / "closed") == group and (tmp_path / "closed/keys/ada").exists(), "again is no harm"
    code, said = command(capsys, "open", tmp_path / "all", "--everybody")
    assert code == 0 and "is open to every account of this machine" in said and "WORKSHOP_CLASS=" in said
    assert stat.S_IMODE((tmp_path / "all/progress").stat().st_mode) == 0o1733


# --- finding the server ------------------------------------------------------------------------------------------------


def test_a_server_is_offered_without_key_and_log(shared):
    connection = Connection(
        "http://127.0.0.1:8123/v1", "tiny", "secret", "/home/x/log", node="n1", job_id="7", state="ready"
    )
    path = connection.offer(shared)
    assert path == shared / "servers/n1-7-8123.json" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "secret" not in path.read_text() and "/home/x" not in path.read_text()
    (found,) = connections.read_all()
    assert found.base_url == connection.base_url and found.api_key == "" and not found.is_ours


def test_the_class_beside_an_installation_is_found_without_a_variable(shared, monkeypatch, tmp_path):
    monkeypatch.delenv("WORKSHOP_CLASS")
    assert connections.class_folder() is None
    monkeypatch.setattr(connections, "BESIDE", shared)
    assert connections.class_folder() == shared
    began = time.monotonic()
    assert connections.read_all() == [] and time.monotonic() - began < 1


@as_root
def test_who_is_not_in_the_group_is_told_so_when_connecting(shared, monkeypatch):
    from helpers import client, queue

    monkeypatch.setattr(client, "LOCALHOST", "http://localhost:9/v1")
    monkeypatch.setattr(queue, "is_here", lambda: False)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        closed = Path(place) / "class"
        closed.mkdir(mode=0o750)
        monkeypatch.setenv("WORKSHOP_CLASS", str(closed))
        monkeypatch.setenv("WORKSHOP_HOME", f"{place}/home")
        "localhost".encode("idna")  # loads what the other user may not read
        said = str(run_as(STRANGER, [OTHER], lambda: client.connect(quiet=True)))
    assert (
        f"You may not enter {closed}, which belongs to the group " in said
        and "Ask your instructor to have you added" in said
    )


def test_a_class_server_that_is_gone_is_the_instructors(shared, monkeypatch):
    from helpers import client, queue

    monkeypatch.setattr(client, "LOCALHOST", "http://localhost:9/v1")
    monkeypatch.setattr(queue, "is_here", lambda: False)
    connection = Connection(
        "http://127.0.0.1:9/v1", "tiny", "s", "", node=socket.gethostname(), pid=2**22 - 1, state="ready"
    )
    path = connection.offer(shared)
    with pytest.raises(
        client.NoServerError, match="The class's server at .* has ended: ask your instructor for the next one"
    ):
        client.connect(quiet=True)
    assert path.exists()
    shutil.rmtree(shared / "keys")
    with pytest.raises(client.NoServerError, match="has no folder for keys: its instructor runs"):
        client.connect(quiet=True)


def test_a_server_for_a_folder_that_is_no_class_does_not_start(tmp_path):
    sentence = f"{tmp_path} is no class's folder"
    with pytest.raises(server.ServerError, match=sentence):
        server.start(quiet=True, environment={"SERVE_CLASS": str(tmp_path)})
    assert sentence in in_serve("start_server", SERVE_CLASS=tmp_path)


def test_a_job_offers_its_server_or_says_why_not(shared, tmp_path):
    job = {
        "SERVE_CLASS": shared,
        "CONNECTION": "/x/n1-7-8123.json",
        "PORT": 8123,
        "SERVED_NAME": "tiny",
        "SLURM_JOB_ID": 7,
    }
    assert in_serve("umask 077; offer_to_class", **job) == ""
    (path,) = (shared / "servers").iterdir()
    found = connections.read(path)
    assert (found.base_url, found.api_key, found.job_id, found.state) == ("http://10.0.0.1:8123/v1", "", "7", "ready")
    assert path.name == "n1-7-8123.json" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "the class does not find this server" in in_serve("offer_to_class", **job | {"SERVE_CLASS": tmp_path / "x"})


def in_serve(function: str, **variables: object) -> str:
    """What a function of slurm/lib/serve.sh says, away from Slurm."""
    script = f"""source {ROOT}/slurm/lib/serve.sh
        say() {{ echo "$*"; }}; fail() {{ echo "$*"; exit 1; }}; finish_on_every_exit() {{ :; }}; named_address() {{ echo 10.0.0.1; }}
        {function}"""
    environment = {"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True).stdout
