"""The Open OnDemand app, rendered by Ruby's ERB as the dashboard does: what it asks of Slurm, what it shows, what it runs."""

import os
import re
import shutil
import stat
import subprocess
import xml.etree.ElementTree as ET

import jsonschema
import pytest
import yaml
from places import SHELLCHECK
from portal import APP, ROOT, job_script, render, sbatch_options, site

from helpers import deployments

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
ATTRIBUTE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["widget", "label"],
    "properties": {
        "widget": {"enum": ["select", "number_field", "text_field", "check_box", "hidden_field", "radio_button"]},
        "label": TEXT,
        "help": TEXT,
        "value": {"type": ["string", "integer"]},
        "required": {"type": "boolean"},
        "options": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
        },
        "min": NUMBER,
        "max": NUMBER,
        "step": NUMBER,
    },
    "if": {"properties": {"widget": {"const": "select"}}},
    "then": {"required": ["options"]},
    "else": {"not": {"required": ["options"]}},
}
#: What ondemand's BatchConnect::App reads of a form; an attribute that is no object has its one value for good.
FORM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["cluster", "form", "attributes", "title"],
    "properties": {
        "cluster": TEXT,
        "title": TEXT,
        "form": {"type": "array", "items": TEXT, "uniqueItems": True},
        "attributes": {"additionalProperties": {"anyOf": [ATTRIBUTE, {"type": ["string", "integer"]}]}},
    },
}
#: What ood_core takes: OodCore::Job::Script's attributes and the basic template's.
SUBMIT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["batch_connect", "script"],
    "properties": {
        "batch_connect": {
            "required": ["template", "set_host"],
            "additionalProperties": False,
            "properties": {"template": {"const": "basic"}, "set_host": TEXT},
        },
        "script": {
            "additionalProperties": False,
            "properties": {
                "wall_time": NUMBER,
                "native": {"type": "array", "items": TEXT},
                **{name: {"pattern": r"\S"} for name in ("accounting_id", "queue_name", "reservation_id")},
            },
        },
    },
}
#: Typed by a person who means harm, or whose folder is called like that.
HOSTILE = 'it\'s a "`touch owned`" $(touch owned) <b>; touch owned\n- --wrap=touch owned: {x}'


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    settings = {"folder": "/shared/workshop", "cluster": "hpc", "accounts": ["physics", "astro"], "queue": "gpu"}
    return site(tmp_path_factory.mktemp("apps") / "workshop", **settings)


@pytest.mark.parametrize("sub_app", ["course", "own"])
def test_form_and_submission_are_what_ondemand_takes(app, tmp_path, sub_app):
    made = render(app, tmp_path / "session", sub_app)
    jsonschema.validate(made["form"], FORM)
    jsonschema.validate(made["submit"], SUBMIT)
    assert set(made["form"]["form"]) == made["form"]["attributes"].keys()
    assert not made["taken"], "Ruby has methods of these names: a form would show what those return"
    assert made["preset"] == (sub_app == "course"), "one click starts the course, and only it"
    wanted = "-t 180 -p gpu --nodes 1 --ntasks 1 --cpus-per-task 4 --mem 16G --signal B:USR1@120"
    assert " ".join(sbatch_options(made["submit"], tmp_path)).endswith(wanted)
    assert made["submit"]["script"]["queue_name"] == "gpu" and "accounting_id" not in made["submit"]["script"]


def test_what_is_chosen_reaches_sbatch(app, tmp_path):
    chosen = {"hours": 2, "cores": 8, "memory": 32, "account": "astro", "reservation": " class ", "queue": ""}
    made = render(app, tmp_path / "session", "own", **chosen)
    options = sbatch_options(made["submit"], tmp_path)
    for words in (
        ["-t", "120"],
        ["-A", "astro"],
        ["--reservation", "class"],
        ["--cpus-per-task", "8"],
        ["--mem", "32G"],
    ):
        assert words == options[options.index(words[0]) :][:2]
    assert "-p" not in options
    assert made["form"]["attributes"]["account"]["options"] == [["physics", "physics"], ["astro", "astro"]]


def test_the_class_may_choose_among_deployments(tmp_path):
    servers = [[d.name, d.title] for d in deployments.catalogue().values() if d.model]
    made = render(site(tmp_path / "app", servers=servers), tmp_path / "session", "own")
    jsonschema.validate(made["form"], FORM)
    options = made["form"]["attributes"]["server"]["options"]
    assert {"none", "small", "llama-3.1-8b", "llama-3.1-405b-tp4-pp4-h100"} <= {name for _, name in options}


@pytest.mark.parametrize("values", [{}, dict.fromkeys(["server", "hours", "cores", "account", "queue"], HOSTILE)])
def test_scripts_are_sound_and_what_people_type_stays_text(tmp_path, values):
    odd = {name: HOSTILE for name in ("folder", "participant_folder", "modules", "portal")} if values else {}
    staged = tmp_path / "session"
    made = render(site(tmp_path / "app", **odd), staged, "own", **values)
    jsonschema.validate(made["submit"], SUBMIT)
    (staged / "job.sh").write_text(job_script(made["submit"], staged))
    scripts = sorted(str(path) for path in staged.glob("*.sh"))
    assert len(scripts) == 5 and not list(staged.glob("*.erb"))
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    ours = [script for script in scripts if not script.endswith("job.sh")]
    level = "error" if values else "style"  # shellcheck wonders at quotes that are part of a folder's name
    command = [SHELLCHECK, "--external-sources", f"--source-path={ROOT}", f"--severity={level}", *ours]
    checked = subprocess.run(command, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stdout
    assert (staged / "script.sh").stat().st_mode & stat.S_IXUSR

    before = (staged / "before.sh").read_text().partition("source ")[0]
    shown = subprocess.run(["bash", "-c", before + 'printf "%s\\0" "$CLASS_FOLDER" "$SERVER" "$MINE" "$HOURS"'],
                           cwd=tmp_path, text=True, capture_output=True, check=True).stdout.split("\0")  # fmt: skip
    assert shown[0] == made["values"]["folder"] and shown[1] == made["values"]["server"]
    assert shown[2] == made["values"]["participant_folder"] and shown[3].isdigit()
    assert not list(tmp_path.rglob("owned"))


def test_the_card_posts_the_password_and_says_what_the_job_said(app, tmp_path):
    staged = tmp_path / "session"
    staged.mkdir()
    (staged / "connection.yml").write_text("host: node1\nport: 20015\npassword: s3cret\n")
    (staged / "messages").write_text("JupyterLab is ready\nNot started: no <room> & more\n")
    card = render(app, staged, "course")["card"]
    form = ET.fromstring(card["view"])
    assert form.attrib["method"] == "post"
    address = "/node/node1/20015/login?next=/node/node1/20015/lab/tree/notebooks/00_start_here.ipynb"
    assert form.attrib["action"] == address
    assert {field.get("name"): field.get("value") for field in form.iter("input")} == {"password": "s3cret"}
    assert card["info"].splitlines() == ["- JupyterLab is ready", "- Not started: no &lt;room&gt; &amp; more"]
    assert str(staged / "output.log") in card["completed"]


def test_the_readme_knows_every_sentence_with_which_a_session_ends():
    told = re.findall(r'fail "([^"]+)"|"(The session has ended[^"]+)"', (APP / "template/session.sh").read_text())
    rows = (APP / "README.md").read_text().partition("## When something fails")[2].splitlines()
    known = [row for line in rows for row in re.findall("`([^`]+)`", line.split("|")[1] if "|" in line else "")]
    patterns = [re.escape(row).replace(r"\.\.\.", ".+").replace("NODE", r"\S+") for row in known]
    assert len(told) >= 11
    for refusal, ending in told:
        sentence = refusal or ending.replace("${ENDED_BY:-JupyterLab was shut down}", "its time was over")
        assert any(re.match(pattern, sentence) for pattern in patterns), sentence


def test_manifest_and_icon():
    manifest = yaml.safe_load((APP / "manifest.yml").read_text())
    assert manifest["role"] == "batch_connect" and manifest["name"] and manifest["category"] == "Interactive Apps"
    assert ET.parse(APP / "icon.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_ruby_that_cannot_be_installed_is_named(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        os.symlink(shutil.which(name), tools / name)
    script = ROOT / "tests/ruby.sh"
    done = subprocess.run([tools / "bash", script], env={"PATH": str(tools)}, text=True, capture_output=True)
    assert done.returncode == 1 and "apt-get install ruby" in done.stderr
