"""A matrix: what its file may hold, what makes two servers the same, and which rows a machine cannot run."""

import pytest

from helpers.bench_checks import gpu_bytes, placed, refusals
from helpers.bench_matrix import Cell, MatrixError, described, flag_value, parse, read
from helpers.hardware import GIB, get_gpu

H200X2 = {"gpus": ["NVIDIA H200"] * 2, "cores": 32}
CPU = {"gpus": [], "cores": 2}
ROW = {"name": "a", "model": "llama-3.1-8b", "flags": ["--max-model-len", "2048"]}


def matrix(*rows, **top):
    return parse({"rows": [ROW | row for row in rows], **top})


def test_a_row_stands_on_what_all_have(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text(
        """
        title = "two"
        order = "together"
        concurrencies = [1, 16]
        lengths = [[512, 128], [64, 8]]
        repeats = 2
        [common]
        model = "llama-3.1-8b"
        flags = ["--max-num-seqs", "128"]
        env = {A = "1", B = "2"}
        [[rows]]
        name = "x"
        [[rows]]
        name = "y"
        tp = 2
        flags = ["--enforce-eager"]
        env = {B = 3}
        concurrencies = [1]
        rounds = 5
        """
    )
    found = read(path)
    x, y = found.rows
    assert found.order == "together" and x.layout == "TP1" and y.layout == "TP2"
    assert y.flags == ("--max-num-seqs", "128", "--enforce-eager") and y.env == {"A": "1", "B": "3"}
    assert x.cells()[0] == Cell(repeat=1, input_len=64, output_len=8, concurrency=1, prompts=2)
    assert len(x.cells()) == 8 and [cell.repeat for cell in x.cells()] == [1] * 4 + [2] * 4
    assert {cell.prompts for cell in y.cells()} == {5} and len(y.cells()) == 4


@pytest.mark.parametrize(
    "data, said",
    [
        ({}, "no \\[\\[rows\\]\\]"),
        ({"rows": [{"model": "tiny"}]}, "row 1: name is missing"),
        ({"rows": [{"name": "a"}]}, "row a: model is missing"),
        ({"rows": [ROW, ROW]}, "two rows called a"),
        ({"rows": [ROW | {"tpp": 2}]}, "'tpp'.* did you mean"),
        ({"rows": [ROW], "ordr": "together"}, "'ordr'.* did you mean order"),
        ({"rows": [ROW], "order": "both"}, "order is 'both'"),
        ({"rows": [ROW | {"tp": 0}]}, "tp holds 0"),
        ({"rows": [ROW | {"repeats": True}]}, "repeats holds True"),
        ({"rows": [ROW | {"lengths": [[512]]}]}, "lengths holds \\[512\\]"),
        ({"rows": [ROW | {"concurrencies": []}]}, "concurrencies holds 0"),
        ({"rows": [ROW | {"flags": ["-tp", "2"]}]}, "-tp is among the flags; set tp"),
        ({"rows": [ROW | {"flags": ["--nnodes=2"]}]}, "--nnodes=2 is among the flags; set nodes"),
    ],
)
def test_what_is_wrong_is_named(data, said):
    with pytest.raises(MatrixError, match=said):
        parse(data)


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "m.toml").write_text("rows = [")
    with pytest.raises(MatrixError, match="no readable TOML"):
        read(tmp_path / "m.toml")
    with pytest.raises(MatrixError, match="no readable TOML"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "change",
    [{"tp": 2}, {"flags": ["--enforce-eager"]}, {"env": {"A": "1"}}, {"config": {"num_hidden_layers": 2}}, {"gpus": [1]},
     {"model": "llama-3.1-70b"}, {"nodes": 2, "tp": 2}],
)  # fmt: skip
def test_another_server_has_another_fingerprint(change):
    one, other = matrix({}).rows[0], matrix(change).rows[0]
    assert one.fingerprint != other.fingerprint and len(one.fingerprint) == 8


def test_its_name_and_load_are_not_the_server():
    one, other = matrix({}).rows[0], matrix({"name": "b", "repeats": 7, "concurrencies": [3]}).rows[0]
    assert one.fingerprint == other.fingerprint
    assert described(one)["layout"] == "TP1" and described(one)["weights"] == "dummy"
    assert described(one)["config"]["hidden_size"] == 4096


def test_an_unknown_model_is_said():
    with pytest.raises(MatrixError, match="no model 'llama-9'"):
        _ = matrix({"model": "llama-9"}).rows[0].config_fields


@pytest.mark.parametrize(
    "flags, name, value",
    [
        (["--aa", "1", "--aa", "2"], "aa", "2"), (["--aa=3"], "aa", "3"), (["--aa", "--b"], "aa", ""), (["--b"], "aa", None),
        (["--kv_cache_dtype", "fp8"], "kv-cache-dtype", "fp8"), (["-q", "fp8"], "q", "fp8"),
    ],
)  # fmt: skip
def test_the_value_of_a_flag(flags, name, value):
    assert flag_value(flags, name) == value


def test_fp8_by_flag_or_by_config_is_known():
    by_flag = matrix({"flags": ["--quantization", "fp8"]}).rows[0]
    by_config = matrix(
        {"config": {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}}
    ).rows[0]
    assert by_flag.shape.quantization.bits == by_config.shape.quantization.bits == 8
    assert matrix({}).rows[0].shape.quantization is None


@pytest.mark.parametrize(
    "row, machine, said",
    [
        ({"tp": 3, "gpus": [0, 1]}, H200X2, "takes 3 GPUs and this machine has 2"),
        ({"tp": 2, "gpus": [0]}, H200X2, "takes 2 different ones of 0 to 1"),
        ({"tp": 2, "gpus": [0, 2]}, H200X2, "takes 2 different ones of 0 to 1"),
        ({"nodes": 2}, H200X2, "1 ranks cannot be shared evenly by 2 nodes"),
        ({"tp": 2, "pp": 2}, CPU, "takes 4 cores and this machine has 2"),
        ({"lengths": [[2048, 128]]}, H200X2, "its longest request has 2176 tokens and the server takes 2048"),
        ({"model": "llama-3.1-70b"}, H200X2, "more than a GPU may use; use more GPUs"),
        ({"model": "qwen2.5-7b", "tp": 3}, {"gpus": ["NVIDIA H200"] * 4, "cores": 9}, "does not divide"),
        ({"model": "tiny", "tp": 3}, {"gpus": [], "cores": 8}, "does not divide"),
        ({"flags": ["--kv-cache-memory-bytes", "1000000000"], "concurrencies": [64]}, H200X2, "needs 40,960 at once"),
        ({"flags": ["--kv-cache-memory-bytes", "1g"], "concurrencies": [64]}, H200X2, "needs 40,960 at once"),
        ({"flags": ["--max-model-len", "600"]}, H200X2, "has 640 tokens and the server takes 600"),
        ({"flags": ["--max-model-len", "0.6k"]}, H200X2, "has 640 tokens and the server takes 600"),
        ({"flags": ["--max-model-len", "long"]}, H200X2, "--max-model-len is 'long'; it must be a whole number"),
        ({"flags": ["--kv-cache-memory-bytes", "140000000000"]}, H200X2, "of a GPU's 139.8; lower --kv-cache"),
    ],
)  # fmt: skip
def test_what_a_machine_cannot_run_is_refused(row, machine, said):
    (refusal,) = refusals(matrix(row), machine)
    assert refusal.startswith("Row a: ") and said in refusal


def test_every_refusal_is_told_and_good_rows_are_not():
    rows = [{"name": "a", "tp": 4}, {"name": "b", "nodes": 2}, {"name": "c", "tp": 2}]
    assert [said[:6] for said in refusals(matrix(*rows), H200X2)] == ["Row a:", "Row b:"]
    assert refusals(matrix({"model": "llama-3.1-70b", "tp": 2}), H200X2) == []
    assert refusals(matrix({"model": "tiny", "tp": 2}), CPU) == []


def test_side_by_side_they_must_share_the_gpus():
    both = [{"name": "a", "tp": 2}, {"name": "b", "gpus": [1]}]
    (said,) = refusals(matrix(*both, order="together"), H200X2)
    assert "GPU 1" in said and "257.2 GiB" in said  # twice 0.92 x 139.8
    small = [row | {"flags": ["--kv-cache-memory-bytes", str(8 * GIB)]} for row in both]
    assert refusals(matrix(*small, order="together"), H200X2) == []
    assert refusals(matrix(*both), H200X2) == []  # in turn they have the GPUs to themselves


def test_what_a_server_with_a_set_cache_takes():
    row = matrix({"flags": ["--kv-cache-memory-bytes", str(8 * GIB)]}).rows[0]
    assert 8 + 15 < gpu_bytes(row, row.shape, get_gpu("H200")) / GIB < 8 + 15 + 4  # its weights take 15.0 GiB
    assert placed(row, H200X2) == (0,) and placed(row, CPU) == ()
