"""`evaluate`, in Python and on the command line: two models of one interface, whoever made them."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from invoking import Outcome, contents, data, invoke, mlp, refusal, stored
from models import model, normal
from onnx import ModelProto, TensorProto, helper

import onnxdpp as package
from onnxdpp import latency as clockwork
from onnxdpp.errors import DataError, MachineError, ModelError, UsageError
from onnxdpp.evaluating import evaluate
from onnxdpp.footprint import compressed, peak_memory
from onnxdpp.report import schema

Run = Callable[..., Outcome]

needs_figures = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say what a process takes")

BARE = ("--no-latency", "--no-memory", "--provider", "cpu")
LINEAR = """
    linear (float[N, 8] x) => (float[N, 3] y) { y = MatMul(x, w) }
"""


def found(original: ModelProto, pruned: ModelProto, feeds: Any = None, **options: Any) -> dict[str, Any]:
    feeds = {"x": data()} if feeds is None else feeds
    options = {"latency": False, "memory": False, "provider": "cpu", **options}
    result = evaluate(original, pruned, feeds, **options)
    jsonschema.validate(result, schema("evaluation"))
    return result


@pytest.fixture
def onnxdpp(capfd: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: invoke(capfd, *arguments)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two models of one interface, but not of one shape, and 64 labelled rows."""
    rows = data()
    np.savez(tmp_path / "test.npz", x=rows, labels=rows[:, :3].argmax(1))
    pruned = stored(mlp(LINEAR, w=np.eye(8, 3, dtype=np.float32)), tmp_path / "linear.onnx")
    return stored(mlp(), tmp_path / "mlp.onnx"), pruned, tmp_path / "test.npz"


# Figures


def test_a_model_beside_itself() -> None:
    result = found(mlp(), mlp(), {"x": data(), "labels": np.zeros(64, int)}, labels="labels")
    assert result["discrepancy"] == {"y": {"relative_l2": 0, "max_abs": 0, "cosine": 1, "agreement": 1}}
    assert result["model"]["before"] == result["model"]["after"]
    part = result["accuracy"]["y"]
    assert part["before"] == part["after"]
    assert (part["change"], part["lost"], part["gained"]) == (0, 0, 0)
    assert part["low"] == -part["high"] < 0


def test_models_of_other_shapes() -> None:
    rows = data()
    labels = rows[:, :3].argmax(1)
    linear = mlp(LINEAR, w=np.eye(8, 3, dtype=np.float32))
    result = found(mlp(), linear, {"x": rows, "labels": labels}, labels="labels")
    before, after = result["model"]["before"], result["model"]["after"]
    assert (before["macs"], after["macs"]) == (8 * 16 + 16 * 12 + 12 * 3, 8 * 3)
    assert (after["parameters"], after["nonzero"]) == (24, 3)
    assert before["bytes"] == len(mlp().SerializeToString(deterministic=True))
    part = result["accuracy"]["y"]
    assert part["after"] == 1
    assert part["gained"] == 64 - round(64 * part["before"])
    assert part["lost"] == 0


def test_swapped_models_swap_the_figures() -> None:
    linear = mlp(LINEAR, w=(8, 3))
    feeds = {"x": data(), "labels": data()[:, :3].argmax(1)}
    one, other = found(mlp(), linear, feeds, labels="labels"), found(linear, mlp(), feeds, labels="labels")
    for key in ("cosine", "agreement", "max_abs"):
        assert one["discrepancy"]["y"][key] == pytest.approx(other["discrepancy"]["y"][key], rel=1e-12)
    assert one["accuracy"]["y"]["change"] == -other["accuracy"]["y"]["change"]
    assert (one["model"]["before"], one["model"]["after"]) == (other["model"]["after"], other["model"]["before"])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_do_not_matter(batch_size: int) -> None:
    feeds = {"x": data(), "labels": data()[:, :3].argmax(1)}
    linear = mlp(LINEAR, w=(8, 3))
    whole, cut = (found(mlp(), linear, feeds, labels="labels", batch_size=size) for size in (None, batch_size))
    assert whole["accuracy"] == cut["accuracy"]
    assert cut["discrepancy"]["y"] == pytest.approx(whole["discrepancy"]["y"], rel=1e-12)


def test_outputs_in_another_order_and_other_names_of_free_dimensions() -> None:
    nodes = ["a = Neg(x)", "c = ArgMax<keepdims = 0, axis = 1>(z)"]
    one = mlp(f"g (float[N, 8] x, float[N, 8] z) => (float[N, 8] a, int64[N] c) {{ {nodes[0]} {nodes[1]} }}")
    other = mlp(f"g (float[B, 8] z, float[B, 8] x) => (int64[B] c, float[B, 8] a) {{ {nodes[1]} {nodes[0]} }}")
    feeds = {"x": data(), "z": data(), "labels": data().argmax(1)}
    result = found(one, other, feeds, labels="labels")
    assert result["discrepancy"]["a"]["relative_l2"] == 0
    assert result["discrepancy"]["c"] == {"agreement": 1}
    assert result["accuracy"]["c"]["after"] == 1


def test_batch_that_one_of_the_models_fixes() -> None:
    fixed = mlp()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    for pair in ((mlp(), fixed), (fixed, mlp())):
        result = found(*pair, {"x": data(), "labels": np.zeros(64, int)}, labels="labels")
        assert result["discrepancy"]["y"]["relative_l2"] == 0
        assert result["rows"] == 64


def test_gzip_bytes_are_those_of_gzip(tmp_path: Path) -> None:
    path = stored(mlp(w1=np.zeros((8, 16), np.float32)), tmp_path / "a.onnx")
    expected = len(gzip.compress(path.read_bytes(), 6))
    assert compressed([path]) == expected
    assert compressed([path, path]) == 2 * expected
    assert found(onnx.load(path), onnx.load(path))["model"]["before"]["gzip_bytes"] == expected


def test_external_data_count(tmp_path: Path) -> None:
    plain, apart = tmp_path / "plain.onnx", tmp_path / "apart.onnx"
    onnx.save(mlp(), plain)
    onnx.save(mlp(), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    result = evaluate(plain, apart, {"x": data()}, provider="cpu", latency=False, memory=False)
    assert result["discrepancy"]["y"]["relative_l2"] == 0
    after = result["model"]["after"]
    assert after["bytes"] == apart.stat().st_size + (tmp_path / "apart.data").stat().st_size
    assert after["gzip_bytes"] == compressed([apart, tmp_path / "apart.data"])
    assert after["nonzero"] == result["model"]["before"]["nonzero"]


def test_what_is_not_finite_is_a_notice_and_no_figure() -> None:
    text = "g (float[N, 8] x) => (float[N, 8] y) { s = Abs(x)  y = %s(s) }"
    rows = data()
    rows[3, 1] = 0
    result = found(mlp(text % "Neg"), mlp(text % "Reciprocal"), {"x": rows})
    assert result["discrepancy"]["y"]["relative_l2"] is None
    assert result["notices"][-1] == (
        "Output 'y' of the pruned model is not finite in 1 entries where the original's is."
    )


def test_latency_of_one_row_and_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clockwork, "SECONDS", 0.0)
    linear = mlp(LINEAR, w=(8, 3))
    result = found(mlp(), linear, latency=True, batch_size=16, threads=2)
    assert [part["rows"] for part in result["latency"]] == [1, 16]
    assert all(part["ratio"] == part["after"] / part["before"] for part in result["latency"])
    assert result["threads"] == 2
    assert [part["rows"] for part in found(mlp(), linear, latency=True, batch_size=1)["latency"]] == [1]


def only_by_fours(last: str = "y = MatMul(h, v)", **weights: Any) -> ModelProto:
    """Free rows by its declaration, a multiple of four by its Reshape."""
    return model(
        f"""g (float[N, 8] x) => (float[N, 3] y) {{
            r = Reshape(x, fours)  a = MatMul(r, w)  t = Tanh(a)  h = Reshape(t, rows)  {last}
        }}""",
        fours=np.int64([-1, 4, 8]), rows=np.int64([-1, 8]), w=(8, 8), v=(8, 3), **weights,
    )  # fmt: skip


def test_models_that_do_not_take_one_row_are_timed_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clockwork, "SECONDS", 0.0)
    result = found(only_by_fours(), only_by_fours(), latency=True, min_speedup=1e-9)
    assert [part["rows"] for part in result["latency"]] == [64]
    (notice,) = result["notices"]
    assert notice.startswith("There is no latency of one row, which the models do not take: onnxruntime fails on row 0")
    assert result["gates"][0]["passed"]
    tried = package.prune(only_by_fours(), {"x": data()}, keep=0.5, provider="cpu", min_speedup=1e-9).report
    assert [part["rows"] for part in tried["evaluation"]["latency"]] == [64]
    assert notice in tried["notices"]


@needs_figures
def test_memory_is_that_of_the_model(tmp_path: Path) -> None:
    """A weight of 64 MiB, which no parent of the process has a share in."""
    large = np.ones(2**26, np.uint8)
    text = "g (float[N, 8192] x) => (float[N, 2048] y) { y = MatMul(x, w) }"
    path = stored(mlp(text, w=(8192, 2048)), tmp_path / "a.onnx")
    taken = peak_memory(path, {"x": data(1, 8192)}, "cpu", 1)
    assert 2**26 < taken.peak - taken.start < 5 * 2**26
    small = peak_memory(stored(mlp(), tmp_path / "b.onnx"), {"x": data(1)}, "cpu", 1)
    assert small.peak - small.start < 2**25 < len(large)
    assert 0 < small.load_seconds < taken.load_seconds


@needs_figures
def test_memory_of_loading_alone_is_less_than_that_of_running_too(tmp_path: Path) -> None:
    """A value on the way is 64 MiB."""
    text = "g (float[N, 8] x) => (float[M, 8] y) { a = Expand(x, wide)  y = Exp(a) }"
    path = stored(mlp(text, wide=np.array([2**21, 8])), tmp_path / "a.onnx")
    idle, busy = (peak_memory(path, feeds, "cpu", 1) for feeds in (None, {"x": data(1)}))
    assert idle.peak - idle.start < busy.peak - busy.start - 2**25


def test_memory_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MachineError("no such process")

    monkeypatch.setattr("onnxdpp.evaluating.peak_memory", fail)
    result = found(mlp(), mlp(), memory=True)
    assert result["memory"] is None
    assert result["notices"] == ["Peak memory cannot be measured: no such process."]


@needs_figures
def test_memory_of_a_model_that_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"NO_SUCHFILE|doesn't exist|failed"):
        peak_memory(tmp_path / "none.onnx", {"x": data(1)}, "cpu", 1)


# Refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[N, 8] z) => (float[N, 3] y)", "input 'x' is tensor(float) ['N', 8] in the original, none in"),
        ("g (float[N, 7] x) => (float[N, 3] y)", "['N', 8] in the original, tensor(float) ['N', 7] in the pruned"),
        ("g (double[N, 8] x) => (float[N, 3] y)", "tensor(float) ['N', 8] in the original, tensor(double) ['N', 8]"),
        ("g (float[N, 8] x) => (float[N, 3] z)", "output 'y' is tensor(float) ['N', 3] in the original, none in"),
        ("g (float[N, 8] x) => (float[N, 4] y)", "output 'y' is tensor(float) ['N', 3] in the original, tensor(float)"),
        ("g (float[N, 8] x, float[N] u) => (float[N, 3] y)", "input 'u' is none in the original, tensor(float) ['N']"),
    ],
)
def test_other_interface(text: str, message: str) -> None:
    proto = mlp("g (float[N, 8] x) => (float[N, 3] y) { y = MatMul(x, w) }", w=(8, 3))
    wanted = onnx.parser.parse_graph(text + " { }")
    other = ModelProto()
    other.CopyFrom(proto)
    del other.graph.input[:], other.graph.output[:], other.graph.node[:]
    other.graph.input.extend(wanted.input)
    for value in wanted.output:
        dims = [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        other.graph.output.append(value)
        shape = helper.make_tensor("s", TensorProto.INT64, [len(dims)], [1 if isinstance(d, str) else d for d in dims])
        other.graph.node.append(helper.make_node("ConstantOfShape", ["s"], [value.name]))
        other.graph.initializer.append(shape)
    with pytest.raises(ModelError) as caught:
        found(proto, other)
    assert message in str(caught.value)


ROWS = data()


@pytest.mark.parametrize(
    ("feeds", "labels", "error", "message"),
    [
        ({"x": ROWS}, "labels", DataError, r"has no array 'labels' \(--labels\); it has 'x'\.$"),
        ({"x": ROWS, "labels": np.zeros(63, int)}, "labels", DataError, "x 64, labels 63"),
        ({"x": ROWS, "labels": np.zeros((64, 3), int)}, "labels", DataError, r"the array has \(64, 3\)"),
        (
            {"x": ROWS, "labels": np.zeros(64)},
            "labels",
            DataError,
            r"array 'labels' \(--labels\) wants int64, the array",
        ),
        ({"x": ROWS, "labels": np.full(64, 3)}, "labels", DataError, "hold 3, which is no class of output 'y'"),
        ({"x": ROWS, "labels": np.full(64, -1)}, "labels", DataError, "hold -1, .* Classes count from 0"),
        ({"x": ROWS, "labels": np.zeros(64, int)}, None, DataError, "an array 'labels', which is no input"),
        ({"x": ROWS}, "x", UsageError, "are an input of the model"),
        ("random:8", "labels", UsageError, "Random data have no labels"),
    ],
)
def test_labels_that_cannot_be(feeds: Any, labels: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        found(mlp(), mlp(), feeds, labels=labels)


def test_labels_of_models_without_classes() -> None:
    text = "g (float[N, 8] x) => (float[N, 1] y) { y = MatMul(x, w) }"
    with pytest.raises(DataError, match="no output of the models has a class, or a row of scores, for each row"):
        found(mlp(text, w=(8, 1)), mlp(text, w=(8, 1)), {"x": data(), "labels": np.zeros(64, int)}, labels="labels")


def test_labels_without_rows() -> None:
    text = "g (float[2, N, 8] x, float[N] z) => (float[2, N, 8] y) { y = Neg(x) }"
    runs = [{"x": data(2, 5, 8), "z": data(5)[:, 0], "labels": np.zeros(2, int)}]
    with pytest.raises(UsageError, match="Not all inputs of the model have a row axis"):
        found(mlp(text), mlp(text), runs, labels="labels")


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_threads_that_cannot_be(threads: Any) -> None:
    with pytest.raises(UsageError, match="threads is"):
        found(mlp(), mlp(), threads=threads)


# The command line


def test_command_shows_tables(onnxdpp: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, pruned, test = files
    before = contents(tmp_path)
    outcome = onnxdpp("evaluate", original, pruned, "--data", test, "--labels", "labels", *BARE)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["parameters", "387", "24", "0.062"] in lines
    assert ["MACs", "per", "row", "356", "24", "0.067"] in lines
    assert "95 % interval" in outcome.out
    assert lines[-1][:4] == ["64", "rows", "on", "cpu"]
    assert contents(tmp_path) == before


def test_command_json_and_report_say_what_python_says(
    onnxdpp: Run, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    original, pruned, test = files
    arguments = ["evaluate", original, pruned, "--data", test, "--labels", "labels", *BARE]
    outcome = onnxdpp(*arguments, "--json", "--report", tmp_path / "r.json")
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == outcome.out
    told = json.loads(outcome.out)
    expected = evaluate(
        str(original), str(pruned), str(test), labels="labels", latency=False, memory=False, provider="cpu"
    )
    assert {**told, "seconds": 0} == {**expected, "seconds": 0}
    assert "exists. Use --force" in refusal(onnxdpp(*arguments, "--report", tmp_path / "r.json"), 2)
    assert "is the input" in refusal(onnxdpp(*arguments, "--report", original, "--force"), 2)


def test_command_quiet(onnxdpp: Run, files: tuple[Path, Path, Path]) -> None:
    original, pruned, _ = files
    assert onnxdpp("evaluate", original, pruned, "--data", "random:8", "--quiet", *BARE) == Outcome(0, "", "")


def test_command_tells_of_random_data(onnxdpp: Run, files: tuple[Path, Path, Path]) -> None:
    original, pruned, _ = files
    outcome = onnxdpp("evaluate", original, pruned, "--data", "random:8", *BARE)
    assert outcome.err == "note: The data are random: sizes and latency are real, answers are not.\n"


def test_command_errors_are_one_line(onnxdpp: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, pruned, test = files
    assert "does not exist" in refusal(onnxdpp("evaluate", original, tmp_path / "no.onnx", "--data", test), 3)
    assert "--data is empty" in refusal(onnxdpp("evaluate", original, pruned, "--data", ""), 2)
    assert "Missing option '--data'" in refusal(onnxdpp("evaluate", original, pruned), 2)
    assert "has no array 'label' (--labels); it has" in refusal(
        onnxdpp("evaluate", original, pruned, "--data", test, "--labels", "label", *BARE), 3
    )


def test_labels_are_no_match_for_an_output_of_strings() -> None:
    """All rows would be wrong in both models, and accuracy would not have changed."""
    proto = model(
        "g (float[N, 4] x) => (string[N] answer) { s = MatMul(x, w)  i = ArgMax <axis = 1, keepdims = 0> (s) "
        "answer = Gather(names, i) }",
        w=(4, 3),
    )
    proto.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [3], [b"a", b"b", b"c"]))
    rows = {"x": normal(20, 4), "labels": np.arange(20) % 3}
    with pytest.raises(DataError, match="no output of the models has a class"):
        evaluate(proto, proto, rows, labels="labels", latency=False, memory=False)
