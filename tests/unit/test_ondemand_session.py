"""What a session's job does on a node, run as it is but for Slurm: notebooks, one JupyterLab, and every way to be refused."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from jupyter_server.auth import passwd_check
from portal import APP, Proxy, job_script, render, shared_folder, site

LESSON = "notebooks/00_start_here.ipynb"
LABS = "labs/README.md"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A class's folder, for tests that do not change it."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    return shared_folder(folder / "class")


LAUNCHED = []


@pytest.fixture(autouse=True)
def nothing_runs_on():
    yield
    for job in LAUNCHED:
        job.terminate()
    while LAUNCHED:
        LAUNCHED.pop().wait(30)


def launch(place: Path, course: Path, job: int = 7, **settings) -> subprocess.Popen:
    """The session's job in `place`, started by bash: home and session folder lie there, as does what it prints."""
    app = site(place / f"app{job}", folder=str(course), participant_folder="$HOME/work", **settings)
    staged = place / f"session{job}"
    submit = render(app, staged, "course")["submit"]
    shutil.rmtree(app)
    (staged / "job.sh").write_text(job_script(submit, staged))
    (place / "home").mkdir(exist_ok=True)
    environment = {"HOME": str(place / "home"), "PATH": os.environ["PATH"], "SLURM_JOB_ID": str(job)}
    with (staged / "output.log").open("w") as log:
        LAUNCHED.append(subprocess.Popen(["bash", staged / "job.sh"], env=environment, stdout=log, stderr=log))
    return LAUNCHED[-1]


def told(place: Path, job: int = 7) -> list[str]:
    """What a session's card shows; its log must hold the same."""
    lines = (place / f"session{job}/messages").read_text().splitlines()
    assert set(lines) <= set((place / f"session{job}/output.log").read_text().splitlines())
    return lines


def in_session(place: Path, code: str, **variables: str) -> str:
    """What a call of one of session.sh's functions prints."""
    place.mkdir(exist_ok=True)
    script = f"source {APP}/template/session.sh; {code}"
    done = subprocess.run(["bash", "-c", script], cwd=place, env=os.environ | variables, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- notebooks ----------------------------------------------------------------------------------------------------


def give(course: Path, mine: Path) -> str:
    (mine / ".workshop").mkdir(parents=True, exist_ok=True)
    return in_session(mine.parent / "session", "copy_materials", CLASS_FOLDER=str(course), MINE=str(mine))


def publish(course: Path, **texts: str) -> None:
    """A new version of the course's files."""
    for name, text in texts.items():
        (course / "materials" / name).write_text(text)
    names = [path.name for path in (course / "materials").iterdir() if path.name != "SHA256SUMS"]
    listed = subprocess.run(["sha256sum", *names], cwd=course / "materials", text=True, capture_output=True, check=True)
    (course / "materials/SHA256SUMS").write_text(listed.stdout)


def test_notebooks_come_without_outputs_and_with_all_else(course, tmp_path):
    give(course, tmp_path / "work")
    notebook = json.loads((tmp_path / "work" / LESSON).read_text())
    original = json.loads((APP.parents[1] / LESSON).read_text())
    assert any(cell.get("outputs") for cell in original["cells"])
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert [c["source"] for c in notebook["cells"]] == [c["source"] for c in original["cells"]]
    assert (tmp_path / "work" / LABS).read_text() == (APP.parents[1] / LABS).read_text()
    assert (tmp_path / "work/slurm/llama-3.1-8b.sbatch").is_file(), "the labs' commands name it so"
    assert stat.S_IMODE((tmp_path / "work" / LESSON).stat().st_mode) == 0o600


def test_edits_are_kept_and_the_course_is_followed(tmp_path):
    course, mine = tmp_path / "class", tmp_path / "work"
    (course / "materials").mkdir(parents=True)
    publish(course, **{"a.md": "one", "b c.md": "one", "gone.md": "one"})
    assert give(course, mine) == ""
    (mine / "b c.md").write_text("mine")
    (mine / "own.md").write_text("own")
    (mine / "gone.md").unlink()
    assert give(course, mine) == ""
    assert (mine / "b c.md").read_text() == "mine" and (mine / "gone.md").read_text() == "one"

    publish(course, **{"a.md": "two", "b c.md": "two", "new.md": "two"})
    assert "b c.md has a newer version, and you have changed yours" in give(course, mine)
    shown = {path.name: path.read_text() for path in mine.glob("*.md")}
    assert shown == {
        "a.md": "two",
        "b c.md": "mine",
        "b c.new.md": "two",
        "gone.md": "one",
        "new.md": "two",
        "own.md": "own",
    }
    (mine / "b c.new.md").unlink()
    assert give(course, mine) == "" and not (mine / "b c.new.md").exists(), "told once"


# --- the password -------------------------------------------------------------------------------------------------


def test_the_hash_is_one_that_jupyter_takes(tmp_path):
    hashed = in_session(tmp_path / "s", 'hash_of "s3cret"')
    assert passwd_check(hashed, "s3cret") and not passwd_check(hashed, "s3cre")
    words = {in_session(tmp_path / "s", "random_word").strip() for _ in range(3)}
    assert len(words) == 3 and all(len(word) == 32 and word.isalnum() for word in words)


# --- a whole session ----------------------------------------------------------------------------------------------


def test_a_session_on_the_second_port_with_its_end(course, tmp_path):
    """The first port is taken between choosing and listening: by us, all the time."""
    with socket.create_server(("0.0.0.0", 20005 + 70)):
        job = launch(tmp_path, course)
        connection = tmp_path / "session7/connection.yml"
        while not connection.exists():
            assert job.poll() is None, told(tmp_path)
            time.sleep(0.05)
    where = yaml.safe_load(connection.read_text())
    assert where["port"] == 20005 + (7 + 97) * 10
    assert "port 20075 is taken" in (tmp_path / "session7/output.log").read_text()
    for path in [connection, tmp_path / "session7/jupyter_config.py", tmp_path / "session7/jupyter.log"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Proxy({where["host"]: "127.0.0.1"}) as proxy:
        address = f"{proxy.origin}/node/{where['host']}/{where['port']}"
        assert httpx.get(f"{address}/api").status_code == 200
        assert httpx.get(f"{address}/api/contents").status_code == 403, "without the password"
        assert httpx.get(f"{proxy.origin}/node/{where['host']}/1/lab").status_code == 503, "where nothing listens"
    job.send_signal(signal.SIGUSR1)  # Slurm's, two minutes before the limit
    time.sleep(0.5)
    assert job.poll() is None
    job.terminate()
    assert job.wait(30)
    assert "The time limit comes in two minutes" in told(tmp_path)[-2]
    assert (
        told(tmp_path)[-1] == f"The session has ended: its time was over. Your notebooks are in {tmp_path}/home/work."
    )
    assert not list(Path("/tmp").glob("workshop-7-*")) and not (tmp_path / "home/work/.workshop/session").exists()
    assert where["password"] not in (tmp_path / "session7/output.log").read_text()
    assert not (tmp_path / "home/.npm").exists() and sorted(os.listdir(tmp_path / "home")) == ["work"]


# --- refused ------------------------------------------------------------------------------------------------------


def refusal(place: Path, course: Path, **settings) -> str:
    """The sentence with which a session ends that must not start; the home folder is as it was."""
    before = sorted(place.glob("home/**/*.ipynb"))
    job = launch(place, course, **settings)
    assert job.wait(30) == 1
    assert sorted(place.glob("home/**/*.ipynb")) == before and not (place / "session7/connection.yml").exists()
    sentence = told(place)[-1]
    assert sentence.startswith("Not started: ") and sentence.endswith((".", "were."))
    return sentence


def test_a_folder_that_is_not_on_the_node(tmp_path):
    assert f"{tmp_path}/nowhere is not on {socket.gethostname()}" in refusal(tmp_path, tmp_path / "nowhere")


def test_a_folder_without_an_environment(course, tmp_path):
    shutil.copytree(course, tmp_path / "class", symlinks=True)
    (tmp_path / "class/.venv").unlink()
    sentence = refusal(tmp_path, tmp_path / "class")
    assert ".venv/bin/python does not start on" in sentence and "helpers.class_install" in sentence


def test_a_module_that_is_not_there(course, tmp_path):
    assert "module load python/9 did not work on" in refusal(tmp_path, course, modules="python/9")


def test_a_folder_of_a_group_that_one_is_not_in(course, tmp_path):
    as_stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*as_stranger, "true"], capture_output=True).returncode:
        pytest.skip("only root can become somebody else")
    folder = Path("/tmp") / f"class-of-others-{os.getpid()}"  # where a stranger gets to, unlike pytest's folders
    script = folder.with_suffix(".sh")
    folder.mkdir(mode=0o750)
    try:
        library = (APP / "template/session.sh").read_text()  # a stranger cannot read our copy either
        script.write_text(f'{library}say() {{ echo "$*"; }}\nCLASS_FOLDER={folder} check_class_folder\n')
        done = subprocess.run([*as_stranger, "bash", script], text=True, capture_output=True, cwd="/")
        assert f"You may not read {folder}, which belongs to the group root; you are in nogroup." in done.stdout
    finally:
        folder.rmdir()
        script.unlink(missing_ok=True)


def test_a_full_home_folder(course, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk to fill")
    try:
        (disk / "home").mkdir()
        kept = disk / "home" / "mine.ipynb"
        kept.write_text("{}")
        app = site(tmp_path / "app", folder=str(course), participant_folder="$HOME")
        staged = disk / "session7"
        (tmp_path / "job.sh").write_text(job_script(render(app, staged, "course")["submit"], staged))
        subprocess.run(["dd", "if=/dev/urandom", f"of={disk}/rest", "bs=4k"], capture_output=True)  # to the last byte
        with (staged / "output.log").open("w") as log:
            environment = {"HOME": str(disk / "home"), "PATH": os.environ["PATH"]}
            job = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, stdout=log, stderr=log)
        assert job.returncode == 1
        sentence = told(disk)[-1]
        assert f"{disk}/home has no room left" in sentence and sentence.endswith("your notebooks are as they were.")
        assert kept.read_text() == "{}" and sorted(os.listdir(disk / "home")) == [".workshop", "mine.ipynb"]
    finally:
        subprocess.run(["umount", disk], check=True)
