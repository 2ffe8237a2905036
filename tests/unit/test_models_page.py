"""slurm/MODELS.md is what recipes and data say today."""

import re

import pytest

from helpers import models_page
from helpers.deployments import catalogue, find


def test_the_committed_page_is_todays():
    assert models_page.PAGE.read_text() == models_page.page(), "python -m helpers.models_page --write"
    assert models_page.main([]) == 0


def test_a_stale_page_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models_page, "PAGE", tmp_path / "MODELS.md")
    assert models_page.main([]) == 1 and "--write" in capsys.readouterr().out
    assert models_page.main(["--write"]) == 0 and models_page.main([]) == 0


def test_every_deployment_is_there_with_its_reason():
    text = models_page.page()
    for name, deployment in catalogue().items():
        if deployment.shape:
            assert f"]({name}.sbatch)" in text
            assert len(models_page.reason(deployment.path)) > 60, name


@pytest.mark.parametrize(
    "name, said",
    [
        ("llama-3.1-405b-fp8-tp4-h200", "30 (1), 708 (64)"),
        ("llama-3.1-70b-tp4-h100", "80 (1), 2,463 (128), on H200"),
        ("minimax-m2.1-tp4-h200", "166 (1), 3,498 (64)"),
        ("deepseek-r1-tp4-pp2-h200", "not measured"),
    ],
)
def test_speeds_are_of_the_same_layout(name, said):
    assert models_page.evidence(find(name)) == said


def test_reasons_are_one_paragraph_with_flags_as_code(tmp_path):
    (tmp_path / "x.sbatch").write_text('# y\n# Why: it fits\n# so; FLAGS="--a b" and TP=2 --c-d=3.\n#\n#   sbatch x\n')
    assert models_page.reason(tmp_path / "x.sbatch") == 'It fits so; `FLAGS="--a b"` and `TP=2` `--c-d=3`.'


def test_memory_is_off_by_little_but_where_it_says_so():
    off = [float(value.rstrip("%")) for value in models_page.rooms()["off by"]]
    assert sorted(abs(value) for value in off)[-2] < 0.3
    assert re.search(r"One is far off", models_page.page())
