"""Site profiles: bash's own reading of them, and the options they give sbatch."""

import pytest

from helpers import sites
from helpers.deployments import ROOT, find
from helpers.sites import SiteError, read_site, sbatch_options


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Writes a profile and reads it back."""
    monkeypatch.setattr(sites, "SITES", tmp_path)

    def write(text, name="mine", **environment):
        (tmp_path / f"{name}.env").write_text(text)
        return read_site(name, {"PATH": "/usr/bin:/bin", **environment})

    return write


@pytest.mark.parametrize("name", ["generic", "testbed", "fasrc"])
def test_the_profiles_that_ship_can_be_read(name):
    site = read_site(name, {"PATH": "/usr/bin:/bin"})
    assert site.runtime == "venv" and site.venv == ROOT / ".venv"
    assert site.is_small == (name == "testbed")


def test_bash_reads_a_profile_as_in_a_job(profile):
    site = profile(
        'SITE_SCRATCH=/local/$USER\nSITE_MODULES="gcc/13 cuda"\nOTHER=1\n', USER="ada", SITE_PARTITION="leftover"
    )
    assert site["SCRATCH"] == "/local/ada"
    assert site["MODULES"] == "gcc/13 cuda"
    assert site["PARTITION"] == "", "what the profile does not say is not taken from elsewhere"
    assert "OTHER" not in site.variables


def test_small_may_be_switched_off_for_one_job():
    assert not read_site("testbed", {"PATH": "/usr/bin:/bin", "SMALL": "0"}).is_small


def test_options_for_sbatch_by_kind_of_gpu(profile):
    site = profile(
        "SITE_ACCOUNT=lab\nSITE_PARTITION=gpu\nSITE_RESERVATION=course\n"
        'SITE_SBATCH_H200="-p big --constraint h200"\nSITE_SBATCH_A100_40=--partition=old\n'
    )
    one, two = find("llama-3.1-8b"), find("llama-3.1-70b-tp2-h200")
    assert sbatch_options(site, one) == ["--account=lab", "--partition=gpu", "--reservation=course"]
    assert sbatch_options(site, two) == [
        "--account=lab",
        "--reservation=course",
        "--partition=big",
        "--constraint=h200",
    ]
    assert sbatch_options(site, one.configured({"GPU": "a100 40gb"}))[-1] == "--partition=old"


def test_on_the_test_cluster_the_kind_of_gpu_does_not_matter(profile):
    site = profile("SITE_PARTITION=gpu\nSMALL=1\nSITE_SBATCH_H100=--partition=h100\n")
    assert sbatch_options(site, find("llama-3.1-8b")) == ["--partition=gpu"]


def test_the_worked_example_sends_each_kind_to_its_partition():
    site = read_site("fasrc", {"PATH": "/usr/bin:/bin"})
    assert sbatch_options(site, find("llama-3.1-8b")) == ["--partition=kempner_h100"]
    assert sbatch_options(site, find("minimax-m2.1-tp4-h200")) == ["--partition=kempner_h200"]
    assert sbatch_options(site, find("llama-3.1-8b").configured({"GPU": "A100-40"})) == ["--partition=kempner"]


def test_your_own_profile_is_taken_unless_another_is_named(profile, monkeypatch):
    monkeypatch.delenv("WORKSHOP_SITE", raising=False)
    profile("SITE_PARTITION=a\n", "generic")
    assert sites.chosen() == "generic"
    profile("SITE_PARTITION=b\n", "here")
    assert read_site()["PARTITION"] == "b"
    monkeypatch.setenv("WORKSHOP_SITE", "generic")
    assert read_site()["PARTITION"] == "a"


def test_a_profile_that_is_not_there_or_broken_is_named(profile):
    with pytest.raises(SiteError, match="no site profile 'moon': set WORKSHOP_SITE to one of "):
        read_site("moon")
    with pytest.raises(SiteError, match=r"bash cannot read .*mine\.env: .*Correct that line"):
        profile('SITE_MODULES="gcc\n')
    with pytest.raises(SiteError, match="cannot read"):
        profile("SITE_PARTITION=gpu long\n")
