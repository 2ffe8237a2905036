"""Where vLLM comes from, as a site profile says: its venv, a module, an Apptainer image."""

import shutil

import pytest
from testbed import ROOT

#: What neither this machine nor Debian has, reduced to what rank.sh needs of it: they say what they were asked for.
STAND_INS = {
    "apptainer": """
        mkdir -p "$WORKSHOP_HOME/bin" && printf '#!/bin/bash\\necho "apptainer $*"\\nwhile [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"\\n' \\
            >"$WORKSHOP_HOME/bin/apptainer" && chmod +x "$WORKSHOP_HOME/bin/apptainer"
        PATH=$WORKSHOP_HOME/bin:$WORKSHOP_VENV/bin:$PATH
        SITE_RUNTIME=apptainer
        SITE_IMAGE=/images/vllm.sif
        SITE_MODELS=/tmp
    """,
    "module": """
        module() { [[ $* == "load vllm/0.32 gcc" ]] && PATH=$WORKSHOP_VENV/bin:$PATH; }
        export -f module
        SITE_RUNTIME=module
        SITE_MODULES="vllm/0.32 gcc"
    """,
}


def _workshop(folder, profile):
    """A copy of the workshop that holds this site profile."""
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("testbed"))
    (folder / "helpers").symlink_to(ROOT / "helpers")
    (folder / "slurm/sites/here.env").write_text(profile)
    return folder / "slurm/any-model"


@pytest.mark.parametrize("runtime", STAND_INS)
def test_runtime(cluster, tmp_path, runtime):
    profile = (ROOT / "slurm/sites/testbed.env").read_text() + STAND_INS[runtime]
    job = cluster.submit(_workshop(tmp_path, profile), WORKSHOP_SITE="")
    job.vllm_began()
    if runtime == "apptainer":
        called = next(line for line in job.log("rank-0").splitlines() if line.startswith("apptainer "))
        assert called.startswith("apptainer exec --nv --bind ") and "/images/vllm.sif vllm serve " in called
        assert str(tmp_path) in called and str(job.folder.parents[1]) in called
    job.cancel()
    assert job.ended().startswith("cancelled")
    job.nothing_left()


#: what the profile says -> what the job says of it, and the doctor's cause
MISTAKES = {
    "SITE_RUNTIME=conda": ("must be venv, module or apptainer", "site-profile"),
    "SITE_VENV=/no/venv": ("no vLLM in /no/venv", "no-vllm"),
    "SITE_MODULES=nosuch": ("module load nosuch did not work", "module-load"),
    "SITE_SCRATCH=/proc/nowhere": ("/proc/nowhere", "folder-not-writable"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_in_a_profile(cluster, tmp_path, line):
    said, cause = MISTAKES[line]
    profile = (ROOT / "slurm/sites/testbed.env").read_text() + line + "\n"
    job = cluster.submit(_workshop(tmp_path, profile), WORKSHOP_SITE="")
    assert job.ended().startswith("failed: rank 0 on node")
    assert said in job.log("rank-0")
    assert job.doctor()["cause"] == cause
    job.nothing_left()


def test_an_unknown_profile(cluster):
    job = cluster.submit("any-model", WORKSHOP_SITE="atlantis")
    assert "atlantis.env" in job.ended()
    assert job.doctor()["cause"] == "site-profile"
