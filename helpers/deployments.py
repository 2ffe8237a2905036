"""The servers that ship as slurm/*.sbatch: what each asks of Slurm and of vLLM, read from the file that is submitted.

`python -m helpers.deployments` checks the memory lines in their headers against helpers.memory; `--write` renews them.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers import memory
from helpers.errors import WorkshopError
from helpers.fields import ConfigError, flag_number
from helpers.hardware import GIB
from helpers.models import ModelConfig, load

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "slurm"
SMALL_MODEL = ROOT / "helpers" / "tiny" / "model"

_SBATCH = re.compile(r"^#SBATCH[ \t]+(.+?)(?:[ \t]+#.*)?$", re.MULTILINE)
_DEFAULT = re.compile(r"\$\{(\w+):=((?:[^{}]|\$\{[^{}]*\})*)\}")
_SERVE = re.compile(r"^serve\b((?:.*\\\n)*.*)$", re.MULTILINE)
_COMMAND = re.compile(r"^#   python -m helpers\.memory (\S+).*$", re.MULTILINE)
_SHORT = {
    "-N": "--nodes", "-c": "--cpus-per-task", "-t": "--time", "-p": "--partition", "-A": "--account",
    "-C": "--constraint", "-q": "--qos",
}  # fmt: skip
_NUMBERS = ("TP", "PP", "DP", "MAX_MODEL_LEN")
_FROM_SLURM = {"SLURM_GPUS_ON_NODE": "gpus_per_node", "SLURM_NNODES": "nodes"}


class DeploymentError(WorkshopError):
    """A deployment that does not exist, or settings of one that make no sense."""


@dataclass(frozen=True)
class Deployment:
    """One sbatch file: a model, the GPUs it asks for, and how they share it.

    `shape` is the name under which helpers.models knows the model, `variables` the defaults as the file writes them and
    whatever replaced them; `memory` and `time` are as Slurm takes them, memory for each node.
    """

    name: str
    path: Path
    title: str
    model: str
    shape: str
    gpu: str
    nodes: int
    gpus_per_node: int
    cpus_per_task: int
    memory: str
    time: str
    tp: int
    pp: int
    dp: int
    max_model_len: int
    flags: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    is_small: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of the whole job."""
        return self.nodes * self.gpus_per_node

    def configured(self, variables: Mapping[str, str] | None = None, options: Sequence[str] = ()) -> "Deployment":
        """This deployment as the job will run it with these variables (TP=2, FLAGS=...) and options of sbatch.

        SMALL=1 swaps in the small model on as many ranks as slurm/lib/job.sh gives it.
        Raises DeploymentError for a size that is no whole number above 0.
        """
        given = {name: str(value) for name, value in (variables or {}).items() if str(value)}
        resources = _resources(asked_of_sbatch(options))
        small = given.get("SMALL", "0") != "0"
        nodes, gpus = resources.get("nodes", self.nodes), resources.get("gpus_per_node", self.gpus_per_node)
        defaults = self.variables | (_small_defaults(nodes, gpus) if small else {}) | given
        return replace(
            self,
            **resources,
            **_settings(defaults, nodes=nodes, gpus_per_node=gpus),
            shape=self.shape if defaults.get("MODEL") == self.variables.get("MODEL") else "",
            flags=([] if small else self.flags) + shlex.split(given.get("FLAGS", "")),
            variables=defaults,
            is_small=small,
        )


def catalogue(folder: Path = FOLDER) -> dict[str, Deployment]:
    """Every deployment that serves, by name: fewest GPUs first, the one for any model last."""
    files = [path for path in folder.glob("*.sbatch") if _SERVE.search(path.read_text())]
    found = sorted(map(read, files), key=lambda d: (not d.model, d.gpus, d.name))
    return {deployment.name: deployment for deployment in found}


def find(name: str, folder: Path = FOLDER) -> Deployment:
    """The deployment of a name, a file name or a path. Raises DeploymentError with the names that come near."""
    if (path := Path(name)).suffix == ".sbatch" and path.is_file():
        return read(path)
    short = Path(name).name.removesuffix(".sbatch")
    if (folder / f"{short}.sbatch").is_file():
        return read(folder / f"{short}.sbatch")
    names = list(catalogue(folder))
    near = difflib.get_close_matches(short, names, n=3, cutoff=0.5) or [n for n in names if n.startswith(short[:4])]
    raise DeploymentError(f"There is no deployment {name!r}: {_near(near or names)}.")


def read(path: str | Path) -> Deployment:
    """The Deployment of an sbatch file. Raises DeploymentError for one that is not there or asks for no node."""
    path = Path(path)
    if not path.is_file():
        raise DeploymentError(f"There is no file {path}: name one of slurm/*.sbatch.")
    text = path.read_text()
    asked = asked_of_sbatch(path)
    if "--nodes" not in asked:
        raise DeploymentError(f"{path} has no line #SBATCH --nodes=N: Slurm would choose how many nodes serve.")
    resources: dict[str, Any] = {"gpus_per_node": 0, "cpus_per_task": 1, "memory": "", "time": ""} | _resources(asked)
    variables = dict(_DEFAULT.findall(text))
    variables.pop("WORKSHOP_ROOT", None)
    serve, command = _SERVE.search(text), _COMMAND.search(text)
    return Deployment(
        name=path.stem,
        path=path,
        title=_title(text),
        shape=command.group(1) if command and "MODEL" in variables else "",
        **resources,
        **_settings(variables, nodes=resources["nodes"], gpus_per_node=resources["gpus_per_node"]),
        flags=shlex.split(serve.group(1).replace("\\\n", " "), comments=True) if serve else [],
        variables=variables,
    )


def asked_of_sbatch(source: Path | Sequence[str]) -> dict[str, str]:
    """Options of sbatch by their long names, from a file's #SBATCH lines or from a command line; the last one counts."""
    if isinstance(source, Path):
        source = [word for line in _SBATCH.findall(source.read_text()) for word in shlex.split(line)]
    return _options(source)


def shape_of(deployment: Deployment) -> ModelConfig:
    """The model's shape, from its header's name for it or from MODEL. Raises ConfigError when neither is known."""
    return load(deployment.shape or deployment.model)


def plan_of(deployment: Deployment, config: ModelConfig | None = None) -> memory.Plan:
    """What helpers.memory says of a deployment on its kind of GPU, with those of its vLLM flags that change memory.

    Raises ConfigError for an unknown model or a flag whose number is none, LayoutError for a layout vLLM refuses, HardwareError for an unknown GPU.
    """
    flags = {"max_model_len": deployment.max_model_len or None} | memory_flags(deployment.flags)
    tp, pp, dp = deployment.tp, deployment.pp, deployment.dp
    return memory.plan(config or shape_of(deployment), gpu=deployment.gpu, tp=tp, pp=pp, dp=dp, **flags)


def memory_lines(deployment: Deployment) -> str:
    """The three header lines on memory, in GiB of the fullest GPU, with the command that computes them."""
    plan, parts = plan_of(deployment), plan_of(deployment).breakdown
    working = sum(parts[part] for part in ("activations", "non_torch", "cuda_graphs"))
    sizes = f"weights {_gib(parts['weights'])}, KV cache {_gib(parts['kv_cache'])}, activations and libraries "
    command = f"python -m helpers.memory {deployment.shape} --gpu {plan.gpu}"
    command += "".join(f" --{name} {size}" for name, size in (("tp", plan.tp), ("pp", plan.pp)) if size > 1)
    return (
        f"# Memory of a GPU, {_gib(plan.gpu_memory)} GiB: {sizes}{_gib(working)}, left free {_gib(parts['left_free'])}.\n"
        f"# The KV cache holds {plan.kv_cache_tokens:,} tokens: "
        f"{plan.max_concurrency:.1f} requests of {plan.max_model_len:,} at once.\n"
        f"#   {command} --max-model-len {plan.max_model_len}"
    )


def with_memory_lines(deployment: Deployment) -> str:
    """The file's text with its memory lines as helpers.memory has them today."""
    text = deployment.path.read_text()
    text = re.sub(r"^# (Memory of a GPU|The KV cache holds).*\n", "", text, flags=re.MULTILINE)
    return _COMMAND.sub(lambda _: memory_lines(deployment), text, count=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0 when every header is right (or has been written), 1 when one is stale."""
    write = "--write" in (sys.argv[1:] if arguments is None else arguments)
    stale = [d for d in catalogue().values() if d.shape and with_memory_lines(d) != d.path.read_text()]
    for deployment in stale:
        if write:
            deployment.path.write_text(with_memory_lines(deployment))
        print(f"{'written' if write else 'stale'}: {deployment.path.relative_to(ROOT)}")
    if stale and not write:
        print("python -m helpers.deployments --write renews them.")
    return 1 if stale and not write else 0


def _options(options: Sequence[str]) -> dict[str, str]:
    """Options as a dictionary: --name=value, --name value, -n value, -nvalue, or a bare --name."""
    asked, rest = {}, list(options)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name[:2] in _SHORT and name[2:]:
            name, equals, value = name[:2], "=", name[2:]
        if not equals and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        asked[_SHORT.get(name, name)] = value
    return asked


def _resources(asked: Mapping[str, str]) -> dict[str, Any]:
    """What of the options is a resource, under Deployment's names."""
    numbers = {"nodes": "--nodes", "gpus_per_node": "--gpus-per-node", "cpus_per_task": "--cpus-per-task"}
    found = {name: _number(option, asked[option]) for name, option in numbers.items() if option in asked}
    return found | {name: asked[f"--{option}"] for name, option in (("memory", "mem"), ("time", "time"))
                    if f"--{option}" in asked}  # fmt: skip


def _settings(variables: Mapping[str, str], **slurm: int) -> dict[str, Any]:
    """The variables that are fields of a Deployment; a default that names Slurm's own variables becomes its value."""
    resolved = {name: _resolve(variables.get(name, ""), slurm) for name in _NUMBERS}
    sizes = {name: _number(name, value) if value else 1 for name, value in resolved.items()}
    return {
        "model": variables.get("MODEL", ""),
        "gpu": variables.get("GPU", ""),
        "tp": sizes["TP"],
        "pp": sizes["PP"],
        "dp": sizes["DP"],
        "max_model_len": sizes["MAX_MODEL_LEN"] if resolved["MAX_MODEL_LEN"] else 0,
    }


def _resolve(value: str, slurm: Mapping[str, int]) -> str:
    named = re.search("|".join(_FROM_SLURM), value)
    return str(slurm[_FROM_SLURM[named.group()]]) if named else value


def _small_defaults(nodes: int, gpus_per_node: int) -> dict[str, str]:
    """As choose_small_model in slurm/lib/job.sh: one rank a node, two on a single node that has two GPUs."""
    tp = 1 if nodes > 1 or gpus_per_node < 2 else 2
    return {"MODEL": str(SMALL_MODEL), "TP": str(tp), "PP": str(nodes), "DP": "1", "MAX_MODEL_LEN": "2048"}


def memory_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Those of vLLM's flags that helpers.memory.plan takes, under its names and in its types.

    A length that vLLM is to find out (auto, -1) counts as none. Raises ConfigError for a number that is none.
    """
    found: dict[str, Any] = {}
    for flag, value in _options(flags).items():
        name = flag.removeprefix("--").replace("-", "_")
        if name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size"):
            if value not in ("", "auto", "-1"):
                found[name] = flag_number(flag, value)
        elif name == "gpu_memory_utilization":
            found[name] = _share(flag, value)
        elif name == "kv_cache_dtype":
            found[name] = value
        elif name in ("enforce_eager", "enable_expert_parallel"):
            found[name.removeprefix("enable_")] = True
    return found


def _share(flag: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{flag} is {value!r}; it must be a share of the GPU's memory, as 0.9.") from None


def _number(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise DeploymentError(f"{name} is {value!r}; it must be a whole number above 0.")
    return int(value)


def _title(text: str) -> str:
    """The first line of comment after the #SBATCH lines."""
    lines = text.partition("\n#\n")[2].splitlines()
    return lines[0].removeprefix("# ").rstrip(":") if lines and lines[0].startswith("# ") else ""


def _near(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}?".rstrip("?") if len(names) < 4 else f"choose {', '.join(names)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


if __name__ == "__main__":
    sys.exit(main())
