"""What would go wrong with a deployment, said before it waits in a queue: its memory, layout, weights, flags and cluster."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers import checkpoint, partitions, vllm_flags
from helpers.deployments import ROOT, Deployment, DeploymentError, plan_of, shape_of
from helpers.environment import NOTE, OK, PROBLEM, Finding
from helpers.fields import ConfigError
from helpers.hardware import GB, HardwareError
from helpers.layout import check_layout
from helpers.memory import weight_bytes
from helpers.models import load
from helpers.partition import LayoutError
from helpers.queue import SlurmError
from helpers.sites import RUNTIMES, Site, sbatch_options

LAUNCHERS = ("native", "ray")


def preflight(
    deployment: Deployment,
    site: Site,
    *,
    variables: Mapping[str, str] | None = None,
    options: Sequence[str] | None = None,
) -> list[Finding]:
    """Findings on a deployment at a site: problems that would make it fail, notes, and what is well.

    `variables` are those the sbatch files read (MODEL, TP, FLAGS, ...), `options` all of sbatch's, by default the site's.
    """
    given = {"SMALL": "1"} if site.is_small else {}
    given |= {name: str(value) for name, value in (variables or {}).items()}
    options = sbatch_options(site, deployment) if options is None else list(options)
    try:
        job = deployment.configured(given, options)
    except DeploymentError as error:
        return [Finding("settings", PROBLEM, str(error), "correct it")]
    found = [*runtime(job, site), *(serving(job, site) if "TP" in deployment.variables else [])]
    return [*found, *cluster(job, options, given)]


def serving(job: Deployment, site: Site) -> list[Finding]:
    """What concerns the model and vLLM alone."""
    if not job.model:
        return [Finding("model", PROBLEM, "none is named", "set MODEL, for example MODEL=Qwen/Qwen2.5-7B-Instruct")]
    folder = local_folder(job.model, site)
    return [*layout(job), *weights(job, folder), *memory(job, folder), *flags(job, site)]


def layout(job: Deployment) -> list[Finding]:
    """TP x PP x DP against the GPUs of the job, as slurm/lib/serve.sh will see it."""
    ranks, sizes = job.tp * job.pp * job.dp, f"TP{job.tp} x PP{job.pp} x DP{job.dp}"
    if ranks % job.nodes:
        return [Finding("layout", PROBLEM, f"{sizes} = {ranks} ranks cannot be shared evenly by {job.nodes} nodes",
                        "change TP, PP or --nodes")]  # fmt: skip
    if ranks != job.gpus and not job.is_small:
        return [Finding("layout", PROBLEM, f"{sizes} takes {ranks} GPUs and the job has {job.gpus}",
                        "change TP and PP, or --nodes and --gpus-per-node")]  # fmt: skip
    return []


def memory(job: Deployment, folder: Path | None) -> list[Finding]:
    """Does vLLM cut the model so, and does it fit on that kind of GPU?"""
    try:
        config = load(folder) if folder and (folder / "config.json").is_file() else shape_of(job)
    except ConfigError as error:
        return [
            Finding("memory", NOTE, f"not checked: {error}", "python -m helpers.memory takes a config.json as well")
        ]
    try:
        if job.is_small:
            check_layout(config, tp=job.tp, pp=job.pp, dp=job.dp)
            return [Finding("memory", OK, "the small model fits anywhere")]
        if not job.gpu:
            return [Finding("memory", NOTE, "not checked, for GPU is not set", "name the kind: GPU=H100")]
        plan = plan_of(job, config)
    except HardwareError as error:
        return [Finding("memory", NOTE, f"not checked: {error}", "set GPU to one of these")]
    except LayoutError as error:
        return [Finding("layout", PROBLEM, str(error), f"change TP or PP; {_search(job)} lists what fits")]
    if plan.fits:
        return [Finding("memory", OK, plan.reason)]
    return [Finding("memory", PROBLEM, f"on {plan.gpus} {plan.gpu}: {plan.reason}", f"{_search(job)} lists what fits")]


def weights(job: Deployment, folder: Path | None) -> list[Finding]:
    """Is the model where the job will look for it, and whole?"""
    if folder:
        faults = checkpoint.problems(folder)
        if not faults:
            return [Finding("weights", OK, f"{checkpoint.summary(folder)} in {folder}")]
        more = f" (and {len(faults) - 1} more: python -m helpers.checkpoint {folder})" if len(faults) > 1 else ""
        return [Finding("weights", PROBLEM, f"{faults[0].rstrip('.')}{more}", f"{_stage(job)} brings them")]
    gated = "" if os.environ.get("HF_TOKEN") else "; a gated model needs HF_TOKEN"
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    said = f"{job.model} is not here: vLLM will download {_size(job)} to {cache} while GPUs wait{gated}"
    return [Finding("weights", NOTE, said, f"{_stage(job)} brings it beforehand")]


def flags(job: Deployment, site: Site) -> list[Finding]:
    """Does the vLLM that will serve take these flags? Without flags of one's own there is nothing to ask."""
    if not job.flags:
        return []
    python = site.venv / "bin" / "python" if site.runtime == "venv" else Path(sys.executable)
    try:
        complaint = vllm_flags.complaint(tuple(job.flags), str(python))
    except vllm_flags.FlagError as error:
        return [Finding("flags", NOTE, f"not checked: {error}", "")]
    if complaint:
        return [Finding("flags", PROBLEM, complaint.rstrip("."), "correct FLAGS or the deployment")]
    return [Finding("flags", OK, shlex.join(job.flags))]


def runtime(job: Deployment, site: Site) -> list[Finding]:
    """Is there a vLLM to start?"""
    if site.runtime not in RUNTIMES:
        return [Finding("runtime", PROBLEM, f"SITE_RUNTIME is {site.runtime!r}", f"use {', '.join(RUNTIMES)}")]
    launcher = job.variables.get("LAUNCHER", "native")
    if launcher not in LAUNCHERS:
        return [Finding("runtime", PROBLEM, f"LAUNCHER is {launcher!r}", f"use {' or '.join(LAUNCHERS)}")]
    if site.runtime == "venv":
        needed = ["vllm", *(["ray"] if launcher == "ray" else [])]
        absent = [name for name in needed if not os.access(site.venv / "bin" / name, os.X_OK)]
        if absent:
            mend = f"{site.venv}/bin/pip install ray" if absent == ["ray"] else "run make setup, or correct SITE_VENV"
            return [Finding("runtime", PROBLEM, f"no {absent[0]} in {site.venv}", mend)]
    if site.runtime == "apptainer" and not Path(site["IMAGE"] or "/nowhere").is_file():
        return [Finding("runtime", PROBLEM, f"there is no image {site['IMAGE'] or '(SITE_IMAGE is empty)'}",
                        "build or pull one, and name it in SITE_IMAGE")]  # fmt: skip
    return []


def cluster(job: Deployment, options: Sequence[str], variables: Mapping[str, str]) -> list[Finding]:
    """What Slurm has to say; a note where there is no Slurm to ask."""
    try:
        found = partitions.check(job, options)
        if any(finding.state == PROBLEM for finding in found):
            return found
        return [*found, *partitions.test_only(job, options, variables)]
    except SlurmError as error:
        return [Finding("Slurm", NOTE, f"not checked: {error}", "")]


def local_folder(model: str, site: Site) -> Path | None:
    """Where the job will find the model on disk, None for one that vLLM would download; as find_model in serve.sh."""
    if site["MODELS"] and (staged := Path(site["MODELS"]) / Path(model).name).is_dir() and any(staged.iterdir()):
        return staged
    if model.startswith((".", "/")):
        return Path(model)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{model.replace('/', '--')}"
    found = (path.parent for path in cached.glob("snapshots/*/config.json"))
    return next((folder for folder in found if not checkpoint.problems(folder)), None)


def _size(job: Deployment) -> str:
    try:
        config = shape_of(job)
    except ConfigError:
        return "it"
    return f"{weight_bytes(config) / GB:,.0f} GB"


def _search(job: Deployment) -> str:
    return f"`python -m helpers.memory {job.shape or job.model} --gpu {job.gpu or 'H100'} --nodes {job.nodes}`"


def _stage(job: Deployment) -> str:
    name = job.model if not job.model.startswith((".", "/")) else "OWNER/NAME"
    script = (ROOT / "slurm" / "stage_weights.sbatch").relative_to(ROOT)
    return f"`MODEL={name} sbatch {script}`"
