"""What to measure, read from a TOML file: rows (a server each), and the load that every one of them gets.

title = "Llama 3.1 8B on two GPUs"
order = "together"                # "in turn" (the default), "alternate" or "together": see ORDERS
concurrencies = [1, 16, 64]       # requests in flight
lengths = [[512, 128]]            # tokens in, tokens out
repeats = 3
rounds = 2                        # a measurement sends rounds x concurrency prompts
[common]                          # what every row has
model = "llama-3.1-8b"            # a shape of helpers/configs, served without weights; a folder with weights; "tiny"
flags = ["--max-model-len", "2048"]
[[rows]]
name = "tp2"
tp = 2
"""

import difflib
import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers.errors import WorkshopError
from helpers.fields import ConfigError
from helpers.models import CATALOGUE, ModelConfig, catalogue
from helpers.tiny import MODEL_DIR

#: How the rows take turns, and what a ratio of two of them is then worth.
ORDERS = {
    "in turn": "each server is started once and measured to the end: the ratio of two rows is of two moments",
    "alternate": "each repeat starts every server anew (A B A B): for servers of which only one fits",
    "together": "all servers are up, and every measurement of one is followed by the same of the next: A B A B",
}
LAYOUT = {"tensor-parallel-size": "tp", "pipeline-parallel-size": "pp", "data-parallel-size": "dp", "nnodes": "nodes"}
SHORT = {"-tp": "tp", "-pp": "pp", "-dp": "dp", "-n": "nodes"}


class MatrixError(WorkshopError):
    """A matrix that cannot be read, or measured here."""


@dataclass(frozen=True, order=True)
class Cell:
    """One measurement: so many requests in flight, each of these lengths in tokens; `repeat` counts from 1."""

    repeat: int
    input_len: int
    output_len: int
    concurrency: int
    prompts: int

    @property
    def load(self) -> tuple[int, int, int]:
        """(tokens in, tokens out, requests in flight): what makes measurements comparable."""
        return self.input_len, self.output_len, self.concurrency


@dataclass(frozen=True, eq=False)  # a row is itself: two of the same content are two servers
class Row:
    """One server: its model, layout, flags and environment, and the load it gets.

    `nodes` cuts it into so many vLLM processes, as on so many nodes. `gpus` are the numbers of those it may use, by
    default the first ones; on a CPU it stays empty. `config` holds fields that replace those of the model's config.json.
    """

    name: str
    model: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    nodes: int = 1
    gpus: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    concurrencies: tuple[int, ...] = (1, 16)
    lengths: tuple[tuple[int, int], ...] = ((512, 128),)
    repeats: int = 1
    rounds: int = 2

    @property
    def ranks(self) -> int:
        """GPUs, or cores of a CPU, that it takes."""
        return self.tp * self.pp * self.dp

    @property
    def layout(self) -> str:
        """As in "TP2 x PP2"."""
        sizes = [f"{name}{size}" for name, size in (("TP", self.tp), ("PP", self.pp), ("DP", self.dp)) if size > 1]
        return " x ".join(sizes or ["TP1"]) + (f" on {self.nodes} nodes" if self.nodes > 1 else "")

    @cached_property
    def folder(self) -> Path | None:
        """Where the weights are; None for a shape served without any."""
        if self.model == "tiny":
            return MODEL_DIR
        return None if self.model in catalogue() else Path(self.model).expanduser()

    @cached_property
    def config_fields(self) -> dict[str, Any]:
        """The config.json that is served. Raises MatrixError when there is none."""
        file = (self.folder or CATALOGUE) / ("config.json" if self.folder else f"{self.model}.json")
        try:
            fields: dict[str, Any] = json.loads(file.read_text()) | self.config
        except (OSError, ValueError):
            known = ", ".join(catalogue())
            raise MatrixError(
                f'Row {self.name}: no model {self.model!r}. Name "tiny", a folder that holds config.json, or a shape: {known}.'
            ) from None
        return fields

    @property
    def shape(self) -> ModelConfig | None:
        """The model for the arithmetic; None for an architecture it does not know."""
        return shape_of(self.config_fields, self.model, self.flags)

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same server: model, layout, GPUs, flags and environment; the name and the load do not count.

        Raises MatrixError when there is no such model.
        """
        what = {name: getattr(self, name) for name in ("tp", "pp", "dp", "nodes", "gpus", "flags", "env")}
        what |= {"config": self.config_fields, "weights": self.folder is not None}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def cells(self) -> list[Cell]:
        """All of its measurements, repeat after repeat."""
        return sorted(
            Cell(repeat, input_len, output_len, concurrency, max(1, self.rounds * concurrency))
            for repeat in range(1, self.repeats + 1)
            for input_len, output_len in self.lengths
            for concurrency in self.concurrencies
        )

    def flag(self, name: str) -> str | None:
        """The value of a flag such as "max-model-len", "" for one without a value, None when it is not given."""
        return flag_value(self.flags, name)


@dataclass(frozen=True)
class Matrix:
    """All there is to measure. Times are in seconds: to readiness, and for one measurement."""

    title: str
    rows: tuple[Row, ...]
    order: str = "in turn"
    ready_timeout: float = 900
    cell_timeout: float = 900


def read(path: str | Path) -> Matrix:
    """The matrix of a TOML file. Raises MatrixError naming what is missing, unknown or of the wrong kind."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MatrixError(
            f"{path} is no readable TOML ({error}); helpers/bench_matrix.py shows what it holds."
        ) from None
    return parse(data, path.name)


def parse(data: dict[str, Any], where: str = "the matrix") -> Matrix:
    """As read(), from what a TOML file holds; errors name it as `where`. Raises MatrixError."""
    data = dict(data)
    rows, common = data.pop("rows", []), data.pop("common", {})
    load = {name: data.pop(name) for name in ("concurrencies", "lengths", "repeats", "rounds") if name in data}
    _known(data, {item.name for item in fields(Matrix)}, where)
    if not isinstance(rows, list) or not rows:
        raise MatrixError(f"{where} has no [[rows]]: add one for each server to measure.")
    read_rows = tuple(
        _row(load | _merged(common, row), f"{where}, row {row.get('name', n)}") for n, row in enumerate(rows, 1)
    )
    names = [row.name for row in read_rows]
    if double := {name for name in names if names.count(name) > 1}:
        raise MatrixError(f"{where} has two rows called {min(double)}; give each a name of its own.")
    matrix = Matrix(title=data.pop("title", where), rows=read_rows, **data)
    if matrix.order not in ORDERS:
        raise MatrixError(f"{where}: order is {matrix.order!r}; it must be one of {', '.join(map(repr, ORDERS))}.")
    return matrix


def shape_of(config: dict[str, Any], name: str, flags: tuple[str, ...] | list[str] = ()) -> ModelConfig | None:
    """The ModelConfig of a config.json's fields as served with these flags, None where the arithmetic does not know it."""
    try:
        shape = ModelConfig.from_dict(config, Path(name).name)
    except ConfigError:
        return None
    quantization = flag_value(flags, "quantization") or flag_value(flags, "q")
    return shape.quantized("fp8") if quantization == "fp8" and not shape.quantization else shape


def flag_value(flags: tuple[str, ...] | list[str], name: str) -> str | None:
    """The value of --name among vLLM's flags, "" for a flag without a value, None when it is not there; the last one counts."""
    found, spelled = None, ("-" if len(name) == 1 else "--") + name
    for place, word in enumerate(flags):
        if word.partition("=")[0].replace("_", "-") == spelled:
            after = flags[place + 1] if place + 1 < len(flags) else ""
            found = word.partition("=")[2] or ("" if after.startswith("--") else after)
    return found


def _merged(common: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row on top of what all have: its flags come after theirs, its tables are joined to theirs."""
    merged = common | row
    for name in ("env", "config"):
        merged[name] = common.get(name, {}) | row.get(name, {})
    merged["flags"] = [*common.get("flags", []), *row.get("flags", [])]
    return merged


def _row(data: dict[str, Any], where: str) -> Row:
    _known(data, {item.name for item in fields(Row)}, where)
    for name in ("name", "model"):
        if not isinstance(data.get(name), str) or not data[name]:
            raise MatrixError(f"{where}: {name} is missing; set it to a text.")
    for name in ("tp", "pp", "dp", "nodes", "repeats", "rounds"):
        _whole(where, name, data.get(name, 1))
    lists = {"gpus": [], "concurrencies": [1, 16], "lengths": [[512, 128]]}
    values = {name: data.get(name, default) for name, default in lists.items()}
    if not all(isinstance(value, list) for value in values.values()) or not values["lengths"]:
        raise MatrixError(f"{where}: gpus, concurrencies and lengths are lists, as in lengths = [[512, 128]].")
    for number in values["concurrencies"] or [0]:
        _whole(where, "concurrencies", number)
    for pair in values["lengths"]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MatrixError(f"{where}: lengths holds {pair!r}; each entry is [tokens in, tokens out].")
        for number in pair:
            _whole(where, "lengths", number)
    flags = tuple(str(flag) for flag in data["flags"])
    for flag in flags:
        if size := LAYOUT.get(flag.partition("=")[0].removeprefix("--")) or SHORT.get(flag):
            raise MatrixError(
                f"{where}: {flag} is among the flags; set {size} of the row, so that the layout can be checked."
            )
    env = {name: str(value) for name, value in data["env"].items()}
    sequences = {
        "gpus": tuple(values["gpus"]), "concurrencies": tuple(values["concurrencies"]),
        "lengths": tuple(tuple(pair) for pair in values["lengths"]), "flags": flags, "env": env,
    }  # fmt: skip
    return Row(**(data | sequences))


def _known(data: dict[str, Any], names: set[str], where: str) -> None:
    for name in data:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            mend = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(sorted(names))}."
            raise MatrixError(f"{where} has {name!r}, which means nothing here: {mend}")


def _whole(where: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MatrixError(f"{where}: {name} holds {value!r}; it must be a whole number above 0.")


def described(row: Row) -> dict[str, Any]:
    """A row as the results keep it: all that its fingerprint stands for, and its config.json."""
    kept = asdict(replace(row, concurrencies=(), lengths=()))
    for name in ("concurrencies", "lengths", "repeats", "rounds", "config"):
        del kept[name]
    weights = "dummy" if row.folder is None else "real"
    return kept | {
        "layout": row.layout,
        "weights": weights,
        "fingerprint": row.fingerprint,
        "config": row.config_fields,
    }
