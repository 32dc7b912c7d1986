"""Two models, one data set: sizes against hand counts, and how far the answers lie apart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxdpp.errors import DataError, ModelError
from onnxdpp.evaluation import Discrepancy, Recalled, compare, macs_per_row, parameters
from onnxdpp.graph.batches import Batch, Batches, input_specs, open_batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Graph

Array = NDArray[Any]


def parsed(text: str) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')


def batches(model: ModelProto, feeds: Mapping[str, Array], batch_size: int | None = None) -> Batches:
    return open_batches(feeds, input_specs(model), batch_size=batch_size)


def macs(text: str, **shapes: Sequence[int]) -> int | None:
    model = parsed(text)
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return macs_per_row(Graph(model), next(iter(batches(model, feeds))), "cpu")


def compared(
    original: str, pruned: str, feeds: Mapping[str, Array], batch_size: int | None = None, **options: bool
) -> Discrepancy:
    before = parsed(original)
    return compare(Graph(before), parsed(pruned), batches(before, feeds, batch_size), "cpu", **options)


# Parameters


def test_parameters_are_float_initializers_and_constants() -> None:
    """Four floats (one zero), 3 integers that do not count, a Constant of 2 (one zero), value_floats of 3."""
    model = parsed("""
        g (float[N, 2] x) => (float[N, 2] y)
          <float[2, 2] w = {1.0, 0.0, 3.0, 4.0}, int64[3] shape = {1, 2, 3}>
        {
            m = MatMul(x, w)
            c = Constant <value: tensor = float[2] {0.0, 5.0}> ()
            d = Constant <value_floats: floats = [1.0, 0.0, 2.0]> ()
            e = Constant <value_float: float = 2.5> ()
            i = Constant <value_int: int = 7> ()
            y = Add(m, c)
        }""")
    assert parameters(model) == (4 + 2 + 3 + 1, 3 + 1 + 2 + 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_parameters_of_other_float_types_count(dtype: Any) -> None:
    tensor = numpy_helper.from_array(np.array([0, 1, 2], dtype), "w")
    assert parameters(helper.make_model(helper.make_graph([], "g", [], [], [tensor]))) == (3, 2)


def test_parameters_in_bodies_and_functions_count() -> None:
    """An If with 2 entries in one branch and 1 in the other, a function with a Constant of 3."""
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([], name, [], [value], [numpy_helper.from_array(np.ones(size, np.float32), "v")])
        for name, size in (("then_branch", 2), ("else_branch", 1))
    }
    choice = helper.make_node("If", ["c"], ["y"], **branches)
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(helper.make_graph([choice], "g", [], []), opset_imports=[opset])
    model.functions.append(helper.make_function("local", "F", [], ["k"], [constant], [opset]))
    assert parameters(model) == (6, 6)


def test_sparse_initializer_counts_what_it_stores() -> None:
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5])), [10])
    graph = helper.make_graph([], "g", [], [], sparse_initializer=[sparse])
    assert parameters(helper.make_model(graph)) == (2, 2)


# MACs, against hand counts


def ones(count: int) -> str:
    """Entries of a constant in ONNX text."""
    return ", ".join(["1.0"] * count)


@pytest.mark.parametrize(
    ("attributes", "w"), [("", "[4, 6]"), ("<transB = 1>", "[6, 4]"), ("<alpha = 0.5, beta = 2.0>", "[4, 6]")]
)
@pytest.mark.parametrize("rows", [1, 5])
def test_macs_of_gemm(attributes: str, w: str, rows: int) -> None:
    text = f"""g (float[N, 4] x) => (float[N, 6] y) <float{w} w = {{{ones(24)}}}>
               {{ y = Gemm {attributes} (x, w) }}"""
    assert macs(text, x=(rows, 4)) == 4 * 6


def test_macs_of_gemm_with_its_left_side_transposed() -> None:
    """(4, 5) times (5, 4): 80 for 5 rows."""
    assert macs("g (float[N, 4] x) => (float[4, 4] y) { y = Gemm <transA = 1> (x, x) }", x=(5, 4)) == 80 / 5


def test_macs_of_matmul_on_sequences() -> None:
    text = f"""g (float[N, 5, 4] x) => (float[N, 5, 3] y) <float[4, 3] w = {{{ones(12)}}}>
               {{ y = MatMul(x, w) }}"""
    assert macs(text, x=(2, 5, 4)) == 5 * 4 * 3


def test_macs_of_matmul_between_activations() -> None:
    text = "g (float[N, 5, 4] x) => (float[N, 5, 5] y) { t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul(x, t) }"
    assert macs(text, x=(3, 5, 4)) == 5 * 5 * 4


def test_macs_of_grouped_convolution() -> None:
    """6 filters of (2, 3, 3) in two groups at each of 8 x 8 positions."""
    text = f"""g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) <float[6, 2, 3, 3] w = {{{ones(108)}}}>
               {{ y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w) }}"""
    assert macs(text, x=(2, 4, 8, 8)) == 6 * 8 * 8 * 2 * 3 * 3


def test_macs_of_strided_convolution() -> None:
    """3 filters of (2, 2, 2) at each of 4 x 4 positions."""
    text = f"""g (float[N, 2, 8, 8] x) => (float[N, 3, 4, 4] y) <float[3, 2, 2, 2] w = {{{ones(24)}}}>
               {{ y = Conv <strides = [2, 2]> (x, w) }}"""
    assert macs(text, x=(2, 2, 8, 8)) == 3 * 4 * 4 * 2 * 2 * 2


@pytest.mark.parametrize(("group", "channels"), [(1, 3), (2, 6)])
def test_macs_of_transposed_convolution(group: int, channels: int) -> None:
    """Each of 4 x 5 x 5 entries goes into (3, 2, 2) of its group."""
    text = f"""g (float[N, 4, 5, 5] x) => (float[N, {channels}, 10, 10] y)
               <float[4, 3, 2, 2] w = {{{ones(48)}}}>
               {{ y = ConvTranspose <group = {group}, strides = [2, 2]> (x, w) }}"""
    assert macs(text, x=(2, 4, 5, 5)) == 4 * 5 * 5 * 3 * 2 * 2


def test_macs_of_several_nodes_are_summed() -> None:
    text = f"""g (float[N, 2] x) => (float[N, 2] y) <float[2, 3] u = {{{ones(6)}}},
               float[3, 2] v = {{{ones(6)}}}> {{ h = MatMul(x, u)  r = Relu(h)  y = Gemm(r, v) }}"""
    assert macs(text, x=(7, 2)) == 6 + 6


def test_macs_without_any_product_are_zero() -> None:
    assert macs("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", x=(3, 2)) == 0


def test_macs_are_unknown_where_the_model_cannot_run() -> None:
    """A Reshape that fits no number of rows."""
    text = """g (float[N, 2] x) => (float[3, 5] y) <int64[2] s = {3, 5}, float[2, 2] w = {1.0, 1.0, 1.0, 1.0}>
              { h = MatMul(x, w)  y = Reshape(h, s) }"""
    assert macs(text, x=(4, 2)) is None


def test_counting_macs_leaves_the_model_alone() -> None:
    model = parsed("""g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1.0, 1.0, 1.0, 1.0}>
                      { y = MatMul(x, w) }""")
    before = model.SerializeToString(deterministic=True)
    macs_per_row(Graph(model), next(iter(batches(model, {"x": np.ones((3, 2), np.float32)}))), "cpu")
    assert model.SerializeToString(deterministic=True) == before


# compare

SCALE = "g (float[N, 2] x) => (float[N, 2] y) <float c = {%s}> { y = Mul(x, c) }"
SAME = {"relative_l2": 0.0, "max_abs": 0.0, "cosine": 1.0, "agreement": 1.0}
X = np.array([[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]], np.float32)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_discrepancy_is_relative_l2_and_the_largest_difference(batch_size: int | None) -> None:
    found = compared(SCALE % "2.0", SCALE % "2.5", {"x": X}, batch_size)
    assert found.outputs == {
        "y": {"relative_l2": pytest.approx(0.25, rel=1e-12), "max_abs": 2.0, "cosine": pytest.approx(1), "agreement": 1}
    }
    assert found.notices == []


def test_discrepancy_of_the_same_model_is_zero() -> None:
    assert compared(SCALE % "2.0", SCALE % "2.0", {"x": X}).outputs == {"y": SAME}


def test_relative_discrepancy_is_null_where_the_original_is_zero() -> None:
    found = compared(SCALE % "0.0", SCALE % "1.0", {"x": X})
    assert (found.outputs["y"]["relative_l2"], found.outputs["y"]["max_abs"]) == (None, 4.0)
    assert found.outputs["y"]["cosine"] is None


def test_discrepancy_of_two_zeros_is_zero() -> None:
    found = compared(SCALE % "0.0", SCALE % "0.0", {"x": X})
    assert found.outputs == {"y": {**SAME, "cosine": None}}


def test_discrepancy_is_summed_in_float64() -> None:
    """Differences whose squares float16 cannot hold."""
    text = "g (float16[N] x) => (float16[N] y) { y = %s(x) }"
    x = np.array([300.0, -400.0], np.float16)
    found = compared(text % "Identity", text % "Neg", {"x": x})
    assert found.outputs["y"] == {
        "relative_l2": pytest.approx(2.0, rel=1e-12),
        "max_abs": 800.0,
        "cosine": pytest.approx(-1, abs=1e-15),
        "agreement": None,
    }


@pytest.mark.parametrize(
    ("kind", "operator"), [("int64", "Cast <to = 7>"), ("bool", "Cast <to = 9>"), ("string", "Cast <to = 8>")]
)
def test_outputs_that_are_not_floats_are_compared_by_agreement(kind: str, operator: str) -> None:
    text = f"g (float[N, 2] x) => ({kind}[N, 2] y) <float[2] c = {{%s}}> {{ h = Mul(x, c)  y = {operator} (h) }}"
    x = np.array([[1, 1], [2, 2], [0, 0], [0, 3]], np.float32)
    found = compared(text % "1.0, 1.0", text % "1.0, 0.0", {"x": x}, 3)
    # three of the eight entries become zero
    assert found.outputs == {"y": {"agreement": 5 / 8}}


def test_outputs_without_entries_are_not_compared() -> None:
    text = "g (float[N, 2] x) => (int64[M, K] y) { z = Sub(x, x)  y = NonZero(z) }"
    found = compared(text, text, {"x": X})
    assert (found.outputs, found.notices) == (
        {}, ["Output 'y' has nothing to compare on these rows: no finite entry, padding aside."]
    )  # fmt: skip
    assert math.isnan(found.worst)


def test_outputs_behind_random_operators_are_not_compared() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y, float[N, 2] noisy)
              { r = RandomNormalLike(x)  noisy = Add(x, r)  y = Neg(x) }"""
    found = compared(text, text, {"x": X})
    assert found.outputs == {"y": SAME}
    (notice,) = found.notices
    assert "'noisy'" in notice
    assert "random" in notice


def test_sequences_are_not_compared() -> None:
    text = "g (float[N, 2] x) => (seq(float[N, 2]) all, float[N, 2] y) { all = SequenceConstruct(x, x)  y = Neg(x) }"
    found = compared(text, text, {"x": X})
    assert found.outputs.keys() == {"y"}
    (notice,) = found.notices
    assert "'all'" in notice
    assert "seq(tensor(float))" in notice


def test_what_is_not_finite_in_the_original_is_left_out() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) <float c = {%s}> { l = Log(x)  y = Mul(l, c) }"
    x = np.array([[1.0, -1.0], [0.0, np.e]], np.float32)  # logarithms 0, NaN, -inf, 1
    found = compared(text % "1.0", text % "1.5", {"x": x})
    assert found.outputs["y"]["relative_l2"] == pytest.approx(0.5, rel=1e-6)
    assert found.outputs["y"]["max_abs"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("operator", ["Log", "Reciprocal"])
def test_what_only_the_pruned_model_cannot_answer_is_an_error(operator: str) -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { y = %s(x) }"
    x = np.ones((5, 2), np.float32)
    x[3, 1] = 0
    with pytest.raises(ModelError, match=r"'y' of the pruned model is not finite for rows 2 to 3 .* Keep more"):
        compared(text % "Neg", text % operator, {"x": x}, 2, finite=True)
    assert compared(text % "Neg", text % operator, {"x": x}, 2).worst == math.inf


def test_other_input_names_are_an_error() -> None:
    with pytest.raises(ModelError, match="other inputs or outputs"):
        compared(SCALE % "1.0", (SCALE % "1.0").replace(" x)", " z)").replace("(x,", "(z,"), {"x": X})


def test_other_output_names_are_an_error() -> None:
    with pytest.raises(ModelError, match="other inputs or outputs"):
        compared(SCALE % "1.0", (SCALE % "1.0").replace(" y)", " z)").replace("y =", "z ="), {"x": X})


def test_another_output_type_is_an_error() -> None:
    text = "g (float[N, 2] x) => (double[N, 2] y) { y = Cast <to = 11> (x) }"
    with pytest.raises(ModelError, match="other inputs or outputs"):
        compared(SCALE % "1.0", text, {"x": X})


def test_another_output_shape_is_an_error() -> None:
    """A Reshape whose target only the run computes, so that the declared shapes agree."""
    text = """g (float[N, 2] x) => (float[A, B] y) <int64[2] a = {-1, %s}>
              { s = Shape(x)  z = Sub(s, s)  t = Add(z, a)  y = Reshape(x, t) }"""
    with pytest.raises(ModelError, match=r"'y' is float32 \(2, 3\) in the pruned model, float32 \(6, 1\) in"):
        compared(text % "1", text % "3", {"x": X})


def test_failing_run_names_the_rows() -> None:
    text = "g (float[N, 2] x) => (float[A, B] y) <int64[2] s = {2, 2}> { y = Reshape(x, s) }"
    # four rows would not fit, and of five the first four come first
    with pytest.raises(DataError, match="rows 0 to 3"):
        compared(text, text, {"x": np.ones((5, 2), np.float32)}, 4)


@pytest.mark.parametrize(("most", "runs"), [(2**27, 3), (16, 4), (0, 6)])
def test_answers_that_fit_are_recalled(monkeypatch: pytest.MonkeyPatch, most: int, runs: int) -> None:
    """Of three batches, compared twice, with answers of 8 bytes each: how often the original runs."""
    ran: list[int] = []
    run = Session.run

    def counted(session: Session, batch: Batch) -> list[Any]:
        ran.append(batch.first)
        return run(session, batch)

    first, second = parsed(SCALE % "1.0"), parsed(SCALE % "1.5")
    rows = batches(first, {"x": X}, 1)
    alone = compare(Graph(first), second, rows, "cpu").outputs
    monkeypatch.setattr(Session, "run", counted)
    monkeypatch.setattr("onnxdpp.evaluation.MOST_BYTES", most)
    recalled = Recalled(first, "cpu")
    for _ in range(2):
        assert compare(Graph(first), second, rows, "cpu", before=recalled).outputs == alone
    assert len(ran) - 6 == runs


def test_progress_is_told_the_rows_of_each_batch() -> None:
    model = parsed(SCALE % "1.0")
    told: list[int] = []
    compare(Graph(model), model, batches(model, {"x": X}, 2), "cpu", told.append)
    assert told == [2, 1]
