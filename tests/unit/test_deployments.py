"""The sbatch files that ship: Slurm's syntax, the shell's, vLLM's flags, and memory as helpers.memory has it today."""

import json
import re
import subprocess
import sys

import pytest
from places import SHELLCHECK

from helpers import deployments, models_page, parallel_data
from helpers.deployments import ROOT, DeploymentError, catalogue, find, memory_lines, plan_of, read, shape_of
from helpers.fields import ConfigError
from helpers.models import load

SLURM = ROOT / "slurm"
FILES = sorted(SLURM.glob("*.sbatch"))
SHIPPED = catalogue()
MODELS = [name for name in SHIPPED if name != "any-model"]
SERVERS = [pytest.param(SHIPPED[name], id=name) for name in MODELS]
# Options of sbatch that the files use; another must be added here by someone who has looked it up.
OPTIONS = {
    "--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--mem", "--time", "--signal",
    "--output", "--array", "--dependency", "--requeue",
}  # fmt: skip


def by_name(path):
    return path.name


def test_the_models_of_the_issue_are_there():
    layouts = {(d.shape, d.gpu, d.nodes, d.gpus_per_node, d.tp, d.pp) for d in SHIPPED.values()}
    assert {
        ("llama-3.1-8b", "H100", 1, 1, 1, 1),
        ("llama-3.1-70b", "H100", 1, 4, 4, 1),
        ("llama-3.1-70b", "H200", 1, 2, 2, 1),
        ("llama-3.1-405b-fp8", "H200", 1, 4, 4, 1),
        ("llama-3.1-405b-fp8", "H100", 2, 4, 4, 2),
        ("llama-3.1-405b", "H100", 4, 4, 4, 4),
        ("deepseek-r1", "H100", 4, 4, 4, 4),
        ("deepseek-r1", "H200", 2, 4, 4, 2),
        ("deepseek-r1-0528", "H100", 4, 4, 4, 4),
        ("deepseek-r1-0528", "H200", 2, 4, 4, 2),
        ("minimax-m2.1", "H200", 1, 4, 4, 1),
        ("qwen2.5-32b", "H100", 1, 1, 1, 1),
    } <= layouts


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_slurm_reads_every_line_meant_for_it(path):
    lines = path.read_text().splitlines()
    meant = [line for line in lines if re.match(r"\s*#\s*sbatch\s+-", line, re.IGNORECASE)]
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert meant, "no #SBATCH line at all"
    assert [line for line in meant if not line.startswith("#SBATCH --")] == [], "to Slurm these are comments"
    assert all(line in lines[:first_command] for line in meant), "Slurm stops reading at the first command"
    assert {line.split()[1].partition("=")[0] for line in meant} <= OPTIONS
    assert f"#SBATCH --job-name={path.stem}" in meant
    assert "#SBATCH --ntasks-per-node=1" in meant
    assert re.search(r"^#SBATCH --signal=B:USR1@\d+$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_every_file_finds_the_library_in_the_same_way(path):
    preamble = re.search(r"^: \"\$\{WORKSHOP_ROOT:=.*\n^source .*$", path.read_text(), re.MULTILINE)
    assert preamble and preamble.group() in (SLURM / "any-model.sbatch").read_text()


def test_the_shell_understands_the_files_and_shellcheck_has_no_complaint():
    scripts = [*FILES, *(SLURM / "lib").glob("*.sh")]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    assert SHELLCHECK.exists(), "shellcheck is part of the requirements"
    alike = [SHIPPED[name].path for name in MODELS[1:]]  # they source what the first does
    whole = [*(path for path in FILES if path not in alike), *(SLURM / "sites").glob("*.env")]
    for options, targets in ((["-x"], whole), (["--exclude=SC1090,SC1091"], alike)):
        done = subprocess.run([SHELLCHECK, *options, *targets], cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("deployment", SERVERS)
def test_the_layout_uses_exactly_the_gpus_asked_for_and_tp_stays_in_a_node(deployment):
    assert deployment.tp * deployment.pp * deployment.dp == deployment.gpus
    assert deployment.gpus_per_node % deployment.tp == 0


@pytest.mark.parametrize("deployment", SERVERS)
def test_the_model_fits_with_room_for_four_requests_of_full_length(deployment):
    plan = plan_of(deployment)
    assert plan.fits, plan.reason
    assert plan.max_concurrency >= 4
    assert deployment.max_model_len <= shape_of(deployment).max_position_embeddings


@pytest.mark.parametrize("deployment", SERVERS)
def test_the_header_says_what_helpers_memory_says_today(deployment):
    assert f"\n{memory_lines(deployment)}\n# Why: " in deployment.path.read_text(), (
        "python -m helpers.deployments --write"
    )
    assert all(len(line) <= 120 for line in deployment.path.read_text().splitlines())


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b-tp2-h200", "qwen2.5-32b"])
def test_the_speeds_of_a_header_are_those_of_the_data(name):
    """(tokens/s, requests at once) as the header says them, for its flags and, if it names them, for two GPUs."""
    header = " ".join(line.lstrip("# ") for line in SHIPPED[name].path.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"data/bench\): ([\d,]+) tokens/s for a single client(?:,| and) ([\d,]+) for (\d+)(.*)", header)
    one, many, at, rest = found.groups()
    said = {(one, 1), (many, int(at))}
    if twice := re.search(r"on two of them ([\d,]+) and ([\d,]+)", rest):
        said |= {(twice[1], 1), (twice[2], int(at))}
    data = parallel_data.two_gpus(SHIPPED[name].shape)
    measured = {(f"{row.tokens_per_second:,.0f}", row.concurrency) for row in data.itertuples() if "FP8" not in row.row}
    assert said <= measured
    if ratio := re.search(r"one token alone: ([\d.]+) times .* takes (\d+) s more", rest):
        tried = parallel_data.tried().loc["a graph compiled for one token"]
        same = tried[tried["model"] == SHIPPED[name].shape]
        assert ratio.groups() in {(f"{row.one:.2f}", f"{row.start_s:.0f}") for row in same.itertuples()}


def test_the_speeds_of_headers_on_four_gpus_are_those_of_the_data():
    def said(model, row, concurrency):
        table = parallel_data.four_repeated()
        return f"{parallel_data.speed(table[table['model'] == model], row, concurrency):,.0f}"

    one, many = (said("llama-3.1-405b-fp8", "TP4", n) for n in (1, 64))
    words = f"data/bench/four): {one} tokens/s for a single client, {many} for 64."
    assert words in models_page.reason(SHIPPED["llama-3.1-405b-fp8-tp4-h200"].path)
    one, many = ([said("llama-3.1-70b", row, n) for row in ("TP4", "TP2 x PP2", "PP4")] for n in (1, 128))
    words = "{} tokens/s for a single client with TP4, {} with TP2 x PP2, {} with PP4; for 128 clients {}, {} and {}."
    assert words.format(*one, *many) in models_page.reason(SHIPPED["llama-3.1-70b-tp4-h100"].path)


@pytest.mark.parametrize("deployment", SERVERS)
def test_the_header_computes_the_model_that_is_served(deployment):
    """What load() knows under the served name must be the shape in the header; it does not know the FP8 checkpoint's."""
    if deployment.shape != "llama-3.1-405b-fp8":
        assert load(deployment.model) == shape_of(deployment)


def test_headers_that_are_stale_are_named_and_written(tmp_path, monkeypatch, capsys):
    stale = (SLURM / "llama-3.1-8b.sbatch").read_text().replace("weights 15.0", "weights 16.0")
    (tmp_path / "slurm").mkdir()
    path = tmp_path / "slurm" / "llama-3.1-8b.sbatch"
    path.write_text(stale)
    monkeypatch.setattr(deployments, "ROOT", tmp_path)
    monkeypatch.setattr(deployments, "catalogue", lambda: {"llama-3.1-8b": read(path)})
    assert deployments.main([]) == 1
    assert "stale: slurm/llama-3.1-8b.sbatch" in capsys.readouterr().out
    assert deployments.main(["--write"]) == 0
    assert path.read_text() == (SLURM / "llama-3.1-8b.sbatch").read_text()
    assert deployments.main([]) == 0


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_no_flag_that_slows_the_server_down(path):
    assert "--enforce-eager" not in path.read_text()
    assert "--disable-custom-all-reduce" not in path.read_text()


def vllm_commands(deployment, tmp_path, **variables):
    """The commands that slurm/lib/serve.sh would start for a deployment, one a node, by running its own start_ranks."""
    script = """
        source "$LIBRARY"
        rank_address() { echo 10.0.0.1; }
        start_rank() { shift; printf '%s\\n' "$*"; }
        mapfile -t NODES < <(seq "$COUNT")
        start_ranks "$@"
    """
    environment = {
        "PATH": "/usr/bin:/bin", "LIBRARY": str(SLURM / "lib" / "serve.sh"), "COUNT": str(deployment.nodes),
        "MODEL": deployment.model, "SERVED_NAME": "model", "PORT": "10010", "MASTER_PORT": "10011", "RAY_PORT": "10012",
        "TP": str(deployment.tp), "PP": str(deployment.pp), "DP": "1", "MAX_MODEL_LEN": str(deployment.max_model_len),
        "API_KEY": "key", "JOB_DIR": str(tmp_path), **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script, "bash", *deployment.flags], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_the_pinned_vllm_takes_every_flag_with_its_value(tmp_path):
    """Those of the files and those that slurm/lib adds; Ray's launcher too. One import of vLLM for all."""
    commands = {
        (name, n): command for name in MODELS for n, command in enumerate(vllm_commands(SHIPPED[name], tmp_path)[:2])
    }
    two_nodes = SHIPPED["llama-3.1-405b-fp8-tp4-pp2-h100"]
    commands["ray", 0] = vllm_commands(two_nodes, tmp_path, LAUNCHER="ray")[0]
    assert len(commands) == sum(min(SHIPPED[name].nodes, 2) for name in MODELS) + 1
    flags = {key: command[command.index("serve") + 2 :] for key, command in commands.items()}
    code = "import json, sys; from helpers.vllm_flags import check; print(json.dumps([check(f) for f in json.load(sys.stdin)]))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([*flags.values(), ["--max-modle-len", "1"]]), cwd=ROOT, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *complaints, wrong = json.loads(done.stdout.splitlines()[-1])
    assert {key: said for key, said in zip(flags, complaints, strict=True) if said} == {}
    assert wrong == "vLLM has no flag --max-modle-len: did you mean --max-model-len?"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_slurm_and_the_shell_read_it():
    d = find("minimax-m2.1-tp4-h200")
    assert (d.nodes, d.gpus_per_node, d.cpus_per_task, d.memory, d.time) == (1, 4, 32, "400G", "04:00:00")
    assert (d.model, d.gpu, d.tp, d.pp, d.dp, d.max_model_len) == ("MiniMaxAI/MiniMax-M2.1", "H200", 4, 1, 1, 131072)
    assert d.flags[-2:] == ["--reasoning-parser", "minimax_m2_append_think"]
    assert d.title == "MiniMax-M2.1 (229B, 11B active), FP8 as released: TP4 on one node of 4 H200."


def test_the_file_for_any_model_takes_its_layout_from_the_job():
    d = find("any-model").configured(
        {"MODEL": "Qwen/Qwen2.5-7B-Instruct"}, ["--nodes=2", "--gpus-per-node", "4", "-c16"]
    )
    assert (d.nodes, d.gpus_per_node, d.tp, d.pp, d.cpus_per_task) == (2, 4, 4, 2, 16)
    assert shape_of(d).name == "qwen2.5-7b"
    assert list(SHIPPED)[-1] == "any-model"


def test_variables_replace_the_file_s_and_flags_come_after_them():
    d = find("deepseek-r1-tp4-pp2-h200").configured(
        {"TP": "8", "PP": "1", "FLAGS": "--kv-cache-dtype fp8 --max-num-seqs 64"}
    )
    assert (d.tp, d.pp) == (8, 1)
    assert d.flags == ["--reasoning-parser", "deepseek_r1", "--kv-cache-dtype", "fp8", "--max-num-seqs", "64"]
    assert d.shape == "deepseek-r1"
    assert plan_of(d).kv_bytes_per_token < plan_of(find("deepseek-r1-tp4-pp2-h200").configured({"TP": "8", "PP": "1"})).kv_bytes_per_token  # fmt: skip


@pytest.mark.parametrize(
    ("value", "length"), [("8192", 8192), ("8k", 8000), ("25.6k", 25600), ("8K", 8192), ("auto", 16384), ("-1", 16384)]
)
def test_a_length_may_be_written_as_vllm_takes_it(value, length):
    d = find("llama-3.1-8b").configured({"MAX_MODEL_LEN": "16384", "FLAGS": f"--max-model-len {value}"})
    assert plan_of(d).max_model_len == length


@pytest.mark.parametrize("flags", ["--max-model-len 8kk", "--max-num-seqs 1.5K", "--gpu-memory-utilization most"])
def test_a_flag_whose_number_is_none_is_named(flags):
    d = find("llama-3.1-8b").configured({"FLAGS": flags})
    with pytest.raises(ConfigError, match=f"{flags.split()[0]} is '{flags.split()[1]}'; it must be a"):
        plan_of(d)


def test_another_model_in_the_place_of_the_file_s_is_planned_as_itself():
    d = find("llama-3.1-70b-tp4-h100").configured({"MODEL": "Qwen/Qwen2.5-7B-Instruct"})
    assert shape_of(d).name == "qwen2.5-7b"


@pytest.mark.parametrize(
    "name, tp, pp",
    [("llama-3.1-8b", 1, 1), ("llama-3.1-70b-tp4-h100", 2, 1), ("llama-3.1-405b-tp4-pp4-h100", 1, 4)],
)
def test_small_swaps_in_the_small_model_on_a_rank_a_node(name, tp, pp):
    d = find(name).configured({"SMALL": "1"})
    assert (d.tp, d.pp, d.is_small) == (tp, pp, True)
    assert shape_of(d).num_hidden_layers == 8 and d.flags == []


def test_a_name_that_comes_near_is_told_what_was_meant():
    with pytest.raises(
        DeploymentError, match=r"no deployment 'llama-3\.1-70b-tp4': did you mean .*llama-3\.1-70b-tp4-h100"
    ):
        find("llama-3.1-70b-tp4")
    with pytest.raises(DeploymentError, match="choose .*qwen2.5-32b"):
        find("falcon")


@pytest.mark.parametrize("value", ["0", "four", "-1", "2.5"])
def test_a_size_that_is_none_is_refused(value):
    with pytest.raises(DeploymentError, match="TP is .*whole number above 0"):
        find("llama-3.1-8b").configured({"TP": value})


def test_a_file_without_nodes_is_refused(tmp_path):
    (tmp_path / "x.sbatch").write_text("#!/bin/bash\n# SBATCH --nodes=1\nserve\n")
    with pytest.raises(DeploymentError, match="has no line #SBATCH --nodes=N"):
        read(tmp_path / "x.sbatch")
    with pytest.raises(DeploymentError, match="There is no file"):
        read(tmp_path / "y.sbatch")
