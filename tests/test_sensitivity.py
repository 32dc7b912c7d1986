"""What the outputs feel of a projection: M against Jacobians on the same rows, and graphs of every kind behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, Weight, constant, graph_of, mlp, model, normal, run
from onnx import ModelProto, helper
from test_external import outside

import onnxdpp
from onnxdpp.graph.batches import Batch, Batches, input_specs, open_batches
from onnxdpp.graph.behind import Behind
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import load_model
from onnxdpp.graph.projections import find_projections
from onnxdpp.graph.samples import BYTES, picked, stacked
from onnxdpp.observation import Reading, readings
from onnxdpp.sensitivity import FLOOR, SKETCH, Sensitivity, _folded

SEEDS = st.integers(0, 2**32 - 1)
X = normal(60, 4)
LAYERS: dict[str, Weight] = {"W1": normal(4, 5, seed=8), "W2": normal(5, 3, seed=9)}
A = np.asarray(LAYERS["W2"], np.float64).T
"""From the outputs of the first layer to those of the second (3, 5)."""


def after_fc1(body: str, outputs: str = "float[N, 3] y", x: str = "float[N, 4] x", **weights: Weight) -> ModelProto:
    """A MatMul, and `body` from value a on. Projections: fc1 (5)."""
    text = f"g ({x}) => ({outputs}) {{ [fc1] a = MatMul(x, W1) {body} }}"
    return model(text, **{name: weight for name, weight in {**LAYERS, **weights}.items() if name in text})


ZERO = np.zeros(3, np.float32)
LINEAR = after_fc1("y = MatMul(a, W2)")


def opened(graph: Graph, feeds: Any, batch_size: int | None = None) -> Batches:
    return open_batches(feeds, input_specs(graph.model), batch_size=batch_size)


def felt(
    proto: ModelProto, feeds: Any, *, mask: str | None = None, batch_size: int | None = None, folder: Path | None = None
) -> Array | None:
    """M of the projection 'fc1'; None where it is not known."""
    graph = Graph(proto, folder) if folder else graph_of(proto)
    projection = next(part for part in find_projections(graph)[0] if part.name == "fc1")
    found = Sensitivity(graph, opened(graph, feeds, batch_size), "cpu", mask).of(projection)
    return None if isinstance(found, str) else found


def fitted(x: Array) -> Array:
    """The rows that are not held out."""
    return x[np.arange(len(x)) % 5 != 4]


def expected(jacobians: Array, output: Array) -> Array:
    """JᵀJ summed over all positions (..., q, m), relative to the output."""
    q, m = jacobians.shape[-2:]
    rows = jacobians.reshape(-1, q, m)
    return np.asarray(np.einsum("rqa,rqb->ab", rows, rows) / (output.astype(np.float64) ** 2).sum())


def everywhere(jacobian: Array, *positions: int) -> Array:
    return np.broadcast_to(jacobian, (*positions, *jacobian.shape))


def assert_near(found: Array | None, wanted: Array, tolerance: float) -> None:
    """To `tolerance` of the largest entry."""
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


# Against Jacobians


@given(seed=SEEDS, n=st.integers(1, 6), m=st.integers(1, 4), q=st.integers(1, 6), rows=st.integers(10, 60))
@settings(max_examples=20)
def test_linear_behind_is_exact(seed: int, n: int, m: int, q: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    x, w1, w2 = (rng.standard_normal(shape) for shape in ((rows, n), (n, m), (m, q)))
    proto = model(
        f"g (double[N, {n}] x) => (double[N, {q}] y) {{ [fc1] a = MatMul(x, W1)  y = MatMul(a, W2) }}", W1=w1, W2=w2
    )
    used = fitted(x)
    assert_near(felt(proto, {"x": x}), expected(everywhere(w2.T, len(used)), used @ w1 @ w2), 1e-9)


def test_sigmoids_behind_are_their_jacobians_on_the_same_rows() -> None:
    proto = model(
        """g (double[N, 4] x) => (double[N, 3] y, double[N, 5] s, double[N, 6] t) {
            [fc1] a = Gemm(x, W1, b1)
            s = Sigmoid(a)
            c = MatMul(s, W2)
            t = Sigmoid(c)
            y = MatMul(t, W3)
        }""",
        dtype=np.float64,
        W1=(4, 5), b1=(5,), W2=(5, 6), W3=(6, 3),
    )  # fmt: skip
    w2, w3 = constant(proto, "W2"), constant(proto, "W3")
    x = normal(60, 4, dtype=np.float64)
    y, s, t = run(proto, {"x": fitted(x)})
    del proto.graph.output[1:]
    jacobians = np.einsum("hq,rh,mh,rm->rqm", w3, t * (1 - t), w2, s * (1 - s))
    assert_near(felt(proto, {"x": x}), expected(jacobians, y), 0.03)


@pytest.mark.parametrize("operator", ["Gemm", "Conv", "ConvTranspose"])
def test_positions_that_do_not_meet_add_up(operator: str) -> None:
    if operator == "Gemm":
        proto = model(
            "g (float[N, 4] x) => (float[N, 3] y) { [fc1] a = Gemm(x, W1, b)  y = MatMul(a, W2) }", **LAYERS, b=(5,)
        )
        x, positions = X, 1
    else:
        shape = (5, 4, 3, 3) if operator == "Conv" else (4, 5, 3, 3)
        proto = model(
            f"""g (float[N, 4, 5, 4] x) => (float[N, 3, 5, 4] y) {{
                [fc1] a = {operator} <pads = [1, 1, 1, 1]> (x, W1)
                y = Conv(a, W2)
            }}""",
            W1=shape, W2=np.float32(A[:, :, None, None]),
        )  # fmt: skip
        x, positions = normal(60, 4, 5, 4), 20
    used = fitted(x)
    (y,) = run(proto, {"x": used})
    assert_near(felt(proto, {"x": x}), expected(everywhere(A, len(used), positions), y), 1e-3)


@pytest.mark.parametrize("kind", ["tokens", "pixels"])
def test_positions_that_meet_add_up_on_average(kind: str) -> None:
    """Moved all alike, the 16 of them would count 16 times as much."""
    if kind == "tokens":
        x = normal(60, 16, 4)
        text = """g (float[N, 16, 4] x) => (float[N, 3] y, float[N, 16, 5] t) {
            [fc1] a = MatMul(x, W1)  t = Tanh(a)  u = MatMul(t, W2)  y = ReduceMean <axes = [1], keepdims = 0> (u) }"""
        proto = model(text, **LAYERS)
        y, t = run(proto, {"x": fitted(x)})
    else:
        x = normal(60, 4, 4, 4)
        text = """g (float[N, 4, 4, 4] x) => (float[N, 3, 1, 1] y, float[N, 5, 4, 4] t) {
            [fc1] a = Conv(x, W1)  t = Tanh(a)  u = Conv(t, W2)  y = GlobalAveragePool(u) }"""
        proto = model(text, W1=np.float32(LAYERS["W1"]).T[:, :, None, None], W2=np.float32(A)[:, :, None, None])
        y, t = run(proto, {"x": fitted(x)})
        t = np.moveaxis(t, 1, -1).reshape(len(t), 16, 5)
    del proto.graph.output[1]
    wanted = expected(A * (1 - t[:, :, None] ** 2) / 16, y)
    found = felt(proto, {"x": x})
    assert found is not None
    assert 0.5 < np.trace(found) / np.trace(wanted) < 2
    assert (found * wanted).sum() > 0.97 * np.linalg.norm(found) * np.linalg.norm(wanted)


def test_many_numbers_are_folded_without_changing_products_much() -> None:
    x = normal(60, 50, 4)
    proto = after_fc1("y = MatMul(a, W2)", "float[N, 50, 3] y", "float[N, 50, 4] x")
    (y,) = run(proto, {"x": fitted(x)})
    assert y.size > SKETCH
    assert_near(felt(proto, {"x": x}), expected(everywhere(A, 48, 50), y), 0.1)


def test_what_is_folded_keeps_its_length_on_average() -> None:
    alike = np.ones(5 * SKETCH - 7)
    folded = _folded(alike)
    assert len(folded) == SKETCH
    assert folded @ folded == pytest.approx(len(alike), rel=0.1)


def test_each_output_is_relative_to_its_own_size() -> None:
    scaled = np.float32(1000) * normal(5, 2)
    proto = after_fc1("y = MatMul(a, W2)  z = MatMul(a, W3)", "float[N, 3] y, float[N, 2] z", W3=scaled)
    y, z = run(proto, {"x": fitted(X)})
    jacobian = np.float64(scaled).T
    wanted = expected(everywhere(A, 48), y) + expected(everywhere(jacobian, 48), z)
    assert_near(felt(proto, {"x": X}), wanted, 1e-3)


def test_value_that_is_an_output_itself_counts() -> None:
    proto = after_fc1("y = MatMul(a, W2)", "float[N, 3] y, float[N, 5] a")
    y, a = run(proto, {"x": fitted(X)})
    wanted = expected(everywhere(A, 48), y) + expected(everywhere(np.eye(5), 48), a)
    assert_near(felt(proto, {"x": X}), wanted, 1e-3)


def test_last_projection_feels_all_outputs_alike() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 5] a) { [fc1] a = MatMul(x, W1) }", **{"W1": LAYERS["W1"]})
    (a,) = run(proto, {"x": fitted(X)})
    assert_near(felt(proto, {"x": X}), expected(everywhere(np.eye(5), 48), a), 1e-3)


# One function, told in other ways


def constants_in_nodes() -> ModelProto:
    proto = after_fc1("s = Reshape(a, shape)  y = MatMul(s, W2)", shape=np.int64([-1, 5]))
    for tensor in proto.graph.initializer[1:]:
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del proto.graph.initializer[1:]
    return proto


def captured_by_loop() -> ModelProto:
    """The body adds the product three times, a third of it each."""
    body = """
        zeros = Sub(x3, x3)
        y = Loop(three, yes, zeros) <body = b (int64 i, bool on, float[N, 3] sum) => (bool go, float[N, 3] next) {
            go = Identity(on)  product = MatMul(a, W2)  part = Div(product, threes)  next = Add(sum, part)
        }>"""
    return after_fc1(
        "x3 = MatMul(x, W3)" + body,
        W3=(4, 3), three=np.int64(3), threes=np.float32(3), yes=np.array(True),
    )  # fmt: skip


WAYS = {
    "Gemm": model("g (float[N, 4] x) => (float[N, 3] y) { [fc1] a = Gemm <transB = 1> (x, W1)  y = MatMul(a, W2) }",
                  **{**LAYERS, "W1": np.asarray(LAYERS["W1"]).T}),
    "Constant nodes": constants_in_nodes(),
    "folded": after_fc1("t = Cast <to = 1> (D)  w = Transpose(t)  y = MatMul(a, w)", D=A),
    "twice, and half of it": after_fc1(
        "b = MatMul(a, W2)  c = MatMul(a, W2)  d = Add(b, c)  y = Mul(d, half)", half=np.float32(0.5)
    ),
    "If": after_fc1(
        """y = If(yes) <then_branch = t () => (float[N, 3] p) { p = MatMul(a, W2) },
                        else_branch = e () => (float[N, 3] q) { q = MatMul(x, W3) }>""",
        W3=(4, 3), yes=np.array(True),
    ),
    "If on a computed value": after_fc1(
        """s = ReduceSum <keepdims = 0> (x)  n = Mul(s, s)  yes = Greater(n, less)
        y = If(yes) <then_branch = t () => (float[N, 3] p) { p = MatMul(a, W2) },
                     else_branch = e () => (float[N, 3] q) { q = MatMul(x, W3) }>""",
        W3=(4, 3), less=np.float32(-1),
    ),
    "Loop": captured_by_loop(),
    "one row at a time": after_fc1("y = MatMul(a, W2)", "float[1, 3] y", "float[1, 4] x"),
    "two axes more": after_fc1(
        "b = Unsqueeze(a, one)  c = MatMul(b, W2)  y = Squeeze(c, one)", one=np.int64([1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_same_function_feels_the_same(way: str) -> None:
    assert_near(felt(WAYS[way], {"x": X}), expected(everywhere(A, 48), run(LINEAR, {"x": fitted(X)})[0]), 1e-3)


def test_model_function_behind() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) { [fc1] a = MatMul(x, W1)  y = local.product(a, W2) }""",
        imports={"local": 1},
        functions='<domain: "local", opset_import: ["": 17]> product (p, w) => (q) { q = MatMul(p, w) }',
        **LAYERS,
    )
    np.testing.assert_allclose(felt(proto, {"x": X}), felt(LINEAR, {"x": X}), rtol=1e-6)


def test_weights_in_external_data(tmp_path: Path) -> None:
    path = outside(LINEAR, tmp_path / "m.onnx")
    assert np.array_equal(felt(load_model(path), {"x": X}, folder=tmp_path), felt(LINEAR, {"x": X}))


def test_whole_batches_where_the_model_fixes_them() -> None:
    proto = after_fc1("y = MatMul(a, W2)", "float[3, 3] y", "float[3, 4] x")
    y = run(LINEAR, {"x": X})[0]
    assert_near(felt(proto, {"x": X}), expected(everywhere(A, 60), y), 0.05)


def test_input_that_is_read_again_behind() -> None:
    proto = after_fc1("b = MatMul(a, W2)  c = MatMul(x, W3)  y = Add(b, c)", W3=(4, 3))
    (y,) = run(proto, {"x": fitted(X)})
    assert_near(felt(proto, {"x": X}), expected(everywhere(A, 48), y), 1e-3)


def test_float16_model() -> None:
    half = {name: np.float16(weight) for name, weight in LAYERS.items()}
    proto = model("g (float16[N, 4] x) => (float16[N, 3] y) { [fc1] a = MatMul(x, W1)  y = MatMul(a, W2) }", **half)
    wanted = felt(LINEAR, {"x": X})
    assert wanted is not None
    assert_near(felt(proto, {"x": np.float16(X)}), wanted, 0.03)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_outputs_that_hardly_vary_are_moved_by_more_than_rounding(dtype: type) -> None:
    w1 = np.asarray(LAYERS["W1"]).astype(dtype)
    w1[:, 4] *= dtype(20 * np.finfo(dtype).eps)
    kind = {np.float16: "float16", np.float32: "float"}[dtype]
    proto = model(
        f"g ({kind}[N, 4] x) => ({kind}[N, 3] y) {{ [fc1] a = Gemm(x, W1, b)  y = MatMul(a, W2) }}",
        W1=w1, b=np.array([0, 0, 0, 0, 3], dtype), W2=np.asarray(LAYERS["W2"]).astype(dtype),
    )  # fmt: skip
    x = X.astype(dtype)
    (y,) = run(proto, {"x": fitted(x)})
    assert_near(felt(proto, {"x": x}), expected(everywhere(A, 48), y), 0.06)


# What is left out


EXTRAS = {
    "integers": ("k = ArgMax <axis = 1> (y)", "int64[N, 1] k"),
    "booleans": ("k = Greater(y, zero)", "bool[N, 3] k"),
    "a sequence": ("k = SplitToSequence <axis = 1> (y)", "seq(float[N, 1]) k"),
    "what is random": ("r = RandomNormalLike(y)  k = Add(y, r)", "float[N, 3] k"),
    "what does not follow": ("k = Relu(x)", "float[N, 4] k"),
    "zeros": ("k = Mul(y, zero)", "float[N, 3] k"),
    "NaN": ("n = Neg(one)  r = Sqrt(n)  k = Add(y, r)", "float[N, 3] k"),
    "minus infinity": ("n = Log(zero)  k = Add(y, n)", "float[N, 3] k"),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_outputs_that_say_nothing_are_left_out(extra: str) -> None:
    body, output = EXTRAS[extra]
    proto = after_fc1(f"y = MatMul(a, W2) {body}", f"float[N, 3] y, {output}", zero=ZERO, one=ZERO + 1)
    np.testing.assert_allclose(felt(proto, {"x": X}), felt(LINEAR, {"x": X}), rtol=1e-5, atol=1e-7)


def test_zipmap_is_left_out() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y, seq(map(int64, float)) z) {
            [fc1] a = MatMul(x, W1)
            y = MatMul(a, W2)
            z = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (y)
        }""",
        imports={"ai.onnx.ml": 3},
        **LAYERS,
    )
    found, wanted = (felt(part, {"x": X}) for part in (proto, LINEAR))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minus_infinity_at_the_projection_feels_nothing(dtype: type) -> None:
    kind = {np.float32: "float", np.float64: "double"}[dtype]
    bias = np.array([0.5, 0, -np.inf, 0, 1], dtype)
    proto = model(
        f"g ({kind}[N, 4] x) => ({kind}[N, 5] y) {{ [fc1] a = Gemm(x, W1, b)  y = Softmax(a) }}",
        W1=np.asarray(LAYERS["W1"]).astype(dtype), b=bias,
    )  # fmt: skip
    x = X.astype(dtype)
    (y,) = run(proto, {"x": fitted(x)})
    jacobians = y[:, :, None] * (np.eye(5) - y[:, None])
    found = felt(proto, {"x": x})
    assert_near(found, expected(jacobians, y), 0.05)
    assert found is not None
    assert not found[2].any()


UNKNOWN = {
    "only integers": after_fc1("k = ArgMax <axis = 1> (a)", "int64[N, 1] k"),
    "only a sequence": after_fc1("k = SplitToSequence <axis = 1> (a)", "seq(float[N, 1]) k"),
    "only zeros": after_fc1("y = Mul(a, zero)", "float[N, 5] y", zero=np.float32(0)),
    "all is random": after_fc1("r = RandomNormalLike(a)  y = Add(r, a)", "float[N, 5] y"),
    "something random is read": after_fc1(
        "r = RandomNormalLike(x)  c = MatMul(r, W3)  y = MatMul(a, W2)  z = Add(y, c)",
        "float[N, 3] y, float[N, 3] z", W3=(4, 3),
    ),
    "a sequence is read": after_fc1(
        "s = SequenceConstruct(x, x)  t = SequenceInsert(s, a)  b = ConcatFromSequence <axis = 1> (t)"
        "y = MatMul(b, W3)", W3=(13, 3),
    ),
    "shapes depend on values": after_fc1(
        "r = Relu(a)  k = NonZero(r)  t = Transpose(k)  y = GatherND(a, t)", "float[K] y"
    ),
    "no position": model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            e = Slice(x, z, z, z)  [fc1] a = MatMul(e, W1)  b = MatMul(a, W2)  c = ReduceSum <keepdims = 1> (b)
            d = MatMul(x, W3)  y = Add(d, c)
        }""", **{**LAYERS, "W3": (4, 3), "z": np.int64([0])}
    ),
    "a bfloat16 is read": after_fc1(
        "h = Cast <to = 16> (x)  f = MatMul(a, W2)  g = Cast <to = 16> (f)  i = Concat <axis = 1> (h, g)"
        "y = Cast <to = 1> (i)", "float[N, 7] y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot_be_measured_is_none(case: str) -> None:
    assert felt(UNKNOWN[case], {"x": X}) is None


def test_rows_fixed_behind_is_none() -> None:
    proto = after_fc1("s = Reshape(a, shape)  b = ReduceMean <axes = [0], keepdims = 0> (s)  y = MatMul(b, W2)",
                      "float[5, 3] y", shape=np.int64([12, 5, 5]))  # fmt: skip
    assert felt(proto, {"x": X}) is None


@pytest.mark.parametrize(("rows", "m", "enough"), [(7, 2, False), (10, 2, True), (60, 30, True), (60, 31, False)])
def test_too_few_rows_are_none(rows: int, m: int, enough: bool) -> None:
    """Eight at least, and four passes over the data for all outputs."""
    proto = model(
        "g (float[N, 4] x) => (float[N, 3] y) { [fc1] a = MatMul(x, W1)  y = MatMul(a, W2) }", W1=(4, m), W2=(m, 3)
    )
    assert (felt(proto, {"x": X[:rows]}) is not None) == enough


def test_constant_projection_is_none() -> None:
    assert felt(LINEAR, {"x": np.ones((60, 4), np.float32)}) is None


# Padding


MASKED = """g (float[N, 6, 4] x, int64[N, 6] mask) => (float[N, 6, 3] y) {
    [fc1] a = MatMul(x, W1)  t = Tanh(a)  y = MatMul(t, W2)
}"""


def test_padded_positions_play_no_part() -> None:
    x, mask = normal(60, 6, 4), (np.arange(6) < 1 + np.arange(60)[:, None] % 6).astype(np.int64)
    other = np.where(mask[..., None] != 0, x, 50 * normal(60, 6, 4, seed=2))
    proto = model(MASKED, **LAYERS)
    first, second = (felt(proto, {"x": part, "mask": mask}, mask="mask") for part in (x, other))
    assert first is not None
    assert np.array_equal(first, second)
    assert not np.allclose(first, felt(proto, {"x": x, "mask": mask}), rtol=0.05)
    (t, y), inside = run(observed(proto), {"x": fitted(x), "mask": fitted(mask)}), fitted(mask) != 0
    assert_near(first, expected(A * (1 - t[inside][:, None] ** 2), y[inside]), 0.05)


def observed(proto: ModelProto) -> ModelProto:
    """With the value t as its first output."""
    copy = ModelProto.FromString(proto.SerializeToString())
    copy.graph.output.insert(0, helper.make_tensor_value_info("t", 1, None))
    return copy


# Whichever way rows come


@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_batches_change_nothing(size: int) -> None:
    proto = after_fc1("t = Tanh(a)  y = MatMul(t, W2)")
    x = normal(150, 4)
    assert np.array_equal(felt(proto, {"x": x}, batch_size=size), felt(proto, {"x": x}))


def test_rows_held_out_play_no_part() -> None:
    x = normal(150, 4)
    other = np.where(np.arange(150)[:, None] % 5 == 4, 9, x).astype(np.float32)
    assert np.array_equal(felt(LINEAR, {"x": x}), felt(LINEAR, {"x": other}))


def test_measured_once() -> None:
    graph = graph_of(LINEAR)
    asked, (projection, *_) = Sensitivity(graph, opened(graph, {"x": X}), "cpu"), find_projections(graph)[0]
    assert asked.of(projection) is asked.of(projection)


@pytest.mark.parametrize(("declared", "counts"), [("N, 6", False), ("N, T", True)])
def test_outputs_of_one_number_for_each_position_count_where_the_mask_does(declared: str, counts: bool) -> None:
    """Where the mask has six fixed positions, and the output six: unless it is declared otherwise."""
    text = """g (float[N, 6, 4] x, int64[N, 6] mask) => (float[DECLARED] y) {
        [fc1] a = MatMul(x, W1)  t = Tanh(a)  b = MatMul(t, W2)  y = Squeeze(b, last)
    }""".replace("DECLARED", declared)
    proto = model(text, W1=(4, 3), W2=(3, 1), last=np.int64([-1]))
    x, mask = normal(60, 6, 4), (np.arange(6) < 1 + np.arange(60)[:, None] % 6).astype(np.int64)
    other = np.where(mask[..., None] != 0, x, 50 * normal(60, 6, 4, seed=2))
    first, second = (felt(proto, {"x": part, "mask": mask}, mask="mask") for part in (x, other))
    assert np.allclose(first, second, rtol=1e-3, atol=0) != counts


def batches_of(shape: Sequence[int | str], rows: int, size: int | None = None) -> Batches:
    """Each row says its number."""
    dims = ", ".join(map(str, shape))
    proto = model(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}")
    x = np.broadcast_to(np.arange(rows, dtype=np.float32).reshape(-1, 1), (rows, 2))
    return opened(graph_of(proto), {"x": x}, size)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.data())
def test_picked_rows_are_those_wanted(rows: int, batch_size: int, size: int, data: st.DataObject) -> None:
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1)))), np.intp)
    found = list(picked(batches_of(["N", 2], rows, batch_size), wanted))
    assert [(batch.first, batch.rows, batch.feeds["x"].tolist()) for batch in found] == [
        (row, 1, [[row, row]]) for row in wanted
    ]
    groups = list(stacked(found, size))
    assert [row for batch in groups for row in batch.feeds["x"][:, 0]] == wanted.tolist()
    assert [batch.rows for batch in groups] == [len(batch.feeds["x"]) for batch in groups]
    assert all(batch.rows == size for batch in groups[:-1])
    assert [batch.first for batch in groups] == wanted[::size].tolist()


@given(st.integers(1, 6), st.data())
def test_fixed_batches_are_picked_whole(size: int, data: st.DataObject) -> None:
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, 23)))), np.intp)
    batches = batches_of([size, 2], 24)
    found = list(picked(batches, wanted[wanted < batches.rows]))
    assert [batch.first for batch in found] == [int(n) * size for n in np.unique(wanted[wanted < batches.rows] // size)]
    assert all(batch.feeds["x"].shape == (size, 2) for batch in found)


def test_rows_of_other_shapes_are_not_stacked() -> None:
    lengths = [3, 3, 4, 3, 3, 3]
    rows = [Batch({"x": np.full((1, length), row)}, row, 1) for row, length in enumerate(lengths)]
    groups = [(batch.first, batch.feeds["x"].shape) for batch in stacked(rows, 2)]
    assert groups == [(0, (2, 3)), (2, (1, 4)), (3, (2, 3)), (5, (1, 3))]


def test_rows_of_which_one_input_has_another_shape_are_not_stacked() -> None:
    rows = [Batch({"x": np.zeros((1, 2)), "y": np.zeros((1, length))}, row, 1) for row, length in enumerate([3, 4, 4])]
    assert [batch.feeds["y"].shape for batch in stacked(rows, 3)] == [(1, 3), (2, 4)]


@pytest.mark.parametrize("inputs", ["x", "xy"])
@pytest.mark.parametrize(("share", "together"), [(0.6, 1), (0.5, 2), (0.3, 3)])
def test_large_rows_are_not_stacked_high(share: float, together: int, inputs: str) -> None:
    part = np.broadcast_to(np.float32(0), (1, int(share * BYTES / 4) // len(inputs)))
    rows = [Batch(dict.fromkeys(inputs, part), row, 1) for row in range(4)]
    assert next(stacked(rows, 64)).rows == together


def test_rows_without_entries_are_stacked() -> None:
    rows = [Batch({"x": np.zeros((1, 0))}, row, 1) for row in range(3)]
    assert [batch.rows for batch in stacked(rows, 2)] == [2, 1]


def test_picked_rows_keep_no_batch_in_memory() -> None:
    assert all(batch.feeds["x"].base is None for batch in picked(batches_of(["N", 2], 9, 3), np.array([1, 5])))


# The part behind


def test_captured_names_are_read_behind() -> None:
    behind = Behind.of(graph_of(WAYS["If on a computed value"]), "a")
    assert behind.reads == ("x", "yes")
    assert behind.outputs == ("y",)


def test_outputs_behind_are_those_that_follow() -> None:
    proto = after_fc1("y = MatMul(a, W2)  z = Relu(x)", "float[N, 4] z, float[N, 5] a, float[N, 3] y")
    behind = Behind.of(graph_of(proto), "a")
    assert behind.outputs == ("a", "y")
    assert [graph_of(proto).nodes[index].output[0] for index in behind.nodes] == ["y"]
    assert behind.reads == ()


# Roots


def wanted_by(graph: Graph, names: Sequence[str], outputs: Array | None = None) -> list[Reading]:
    parts = [part for part in find_projections(graph)[0] if part.name in names]
    reads = [(part, np.arange(part.n // part.block)) for part in parts]
    return readings(graph, reads, lambda part: np.arange(part.m) if outputs is None else outputs, 2**31)


HEADS = model(
    """g (float[N, 4] x) => (float[N, 3] y, float[N, 2] z) {
        [fc1] a = MatMul(x, W1)  t = Tanh(a)  [fc2] y = MatMul(t, W2)  [fc3] b = MatMul(t, W3)  z = Sigmoid(b)
    }""",
    **LAYERS,
    W3=(5, 2),
)


def test_root_is_of_m_and_a_floor_side_by_side() -> None:
    graph = graph_of(HEADS)
    asked = Sensitivity(graph, opened(graph, {"x": X}), "cpu")
    (reading,) = wanted_by(graph, ["fc2", "fc3"])
    (root,) = asked.roots([reading], "fc1") or []
    assert np.array_equal(root, np.tril(root))
    found = root @ root.T
    assert not found[:3, 3:].any()
    for (projection, _), part in zip(reading.parts, (slice(0, 3), slice(3, 5)), strict=True):
        m = asked.of(projection)
        assert not isinstance(m, str)
        floor = FLOOR * np.trace(m) / len(m) * np.eye(len(m))
        np.testing.assert_allclose(found[part, part], m + floor, rtol=1e-9, atol=1e-12)


def test_root_of_some_outputs_alone() -> None:
    graph = graph_of(LINEAR)
    asked = Sensitivity(graph, opened(graph, {"x": X}), "cpu")
    alive = np.array([0, 3, 4])
    wanted = wanted_by(graph, ["fc1"], alive)
    (root,) = asked.roots(wanted, "fc1") or []
    m = asked.of(wanted[0].parts[0][0])
    assert not isinstance(m, str)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose((root @ root.T)[off], m[np.ix_(alive, alive)][off], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taps", ["t t", "t x"], ids=["one value", "two values"])
def test_roots_are_none_where_one_is_unknown(taps: str) -> None:
    first, second = taps.split()
    proto = model(
        f"""g (float[N, 4] x) => (float[N, 3] y, int64[N, 1] z) {{
            t = Tanh(x)
            [fc1] y = MatMul({first}, W1)
            [fc2] b = MatMul({second}, W2)
            z = ArgMax <axis = 1> (b)
        }}""",
        W1=(4, 3),
        W2=(4, 2),
    )
    graph = graph_of(proto)
    asked = Sensitivity(graph, opened(graph, {"x": X}), "cpu")
    assert asked.roots(wanted_by(graph, ["fc1"]), "fc1") is not None
    assert asked.roots(wanted_by(graph, ["fc1", "fc2"]), "fc1") is None


def test_roots_are_none_where_nothing_is_felt() -> None:
    proto = after_fc1("b = MatMul(a, W2)  c = Mul(b, zero)  d = MatMul(x, W3)  y = Add(c, d)", W3=(4, 3), zero=ZERO)
    graph = graph_of(proto)
    asked = Sensitivity(graph, opened(graph, {"x": X}), "cpu")
    (wanted,) = wanted_by(graph, ["fc1"])
    assert np.array_equal(asked.of(wanted.parts[0][0]), np.zeros((5, 5)))
    assert asked.roots([wanted], "fc1") is None


def test_roots_are_none_where_channels_are_observed() -> None:
    proto = model("g (float[N, 4, 5, 5] x) => (float[N, 2, 3, 3] y) { [conv] y = Conv(x, W) }", W=(2, 4, 3, 3))
    graph = graph_of(proto)
    (part,) = find_projections(graph)[0]
    asked = Sensitivity(graph, opened(graph, {"x": normal(60, 4, 5, 5)}), "cpu")
    (whole,) = readings(graph, [(part, np.arange(4))], lambda part: np.arange(part.m), 2**31)
    (channels,) = readings(graph, [(part, np.arange(4))], lambda part: np.arange(part.m), 8 * 36**2 - 1)
    assert asked.roots([whole], "fc1") is not None
    assert channels.places is not None
    assert asked.roots([channels], "fc1") is None
    assert asked.notices == ["Sensitivity is left out for 'fc1': its channels are observed, not its inputs."]


@pytest.mark.parametrize(
    "options", [{}, {"sensitivity": True, "method": "obs"}, {"sweeps": 1}, {"keep": None, "target_parameters": 0.5}]
)
def test_layers_whose_sensitivity_is_not_known_are_told_once(options: dict[str, Any]) -> None:
    """By a report too: of 20 rows, 16 outputs get 5, and 3 get 20."""
    proto = mlp(W2=(6, 16), b2=(16,), W3=(16, 3))
    report = onnxdpp.prune(proto, {"x": X[:20]}, **{"keep": 0.5, "provider": "cpu", **options}).report
    assert [notice for notice in report["notices"] if "ensitivity" in notice] == [
        "Sensitivity is left out for 'fc1': 20 calibration rows are too few for 16 outputs, 32 would do."
    ]


def test_sensitivity_that_is_not_asked_for_is_not_told_of() -> None:
    proto = mlp(W2=(6, 16), b2=(16,), W3=(16, 3))
    report = onnxdpp.prune(proto, {"x": X[:20]}, keep=0.5, provider="cpu", sensitivity=False).report
    assert not any("ensitivity" in notice for notice in report["notices"])


def test_many_layers_whose_sensitivity_is_not_known_are_counted() -> None:
    graph = graph_of(LINEAR)
    asked = Sensitivity(graph, opened(graph, {"x": X[:7]}), "cpu")
    for name in "abcde":
        assert asked.roots(wanted_by(graph, ["fc1"]), name) is None
    reason = "7 calibration rows are too few for 5 outputs, 10 would do"
    assert asked.notices == [f"Sensitivity is left out for 'a', 'b', 'c' and 2 more: {reason}."]


# To the end


def muted(scale: float = 0.001) -> tuple[ModelProto, Array]:
    """Of six outputs of fc2, three hardly count. Layers: fc1 (24)."""
    proto = model(
        """g (float[N, 8] x) => (float[N, 6] y) {
            [fc1] a = Gemm(x, W1, b1)
            h = Relu(a)
            [fc2] c = Gemm(h, W2, b2)
            y = Mul(c, scale)
        }""",
        W1=(8, 24), b1=(24,), W2=(24, 6), b2=(6,), scale=np.float32([1, 1, 1, scale, scale, scale]),
    )  # fmt: skip
    return proto, normal(400, 8)


def test_sensitivity_pays_where_half_of_the_outputs_hardly_count() -> None:
    proto, x = muted()
    worst = {}
    for wish in (True, False):
        pruned = onnxdpp.prune(proto, {"x": x}, keep=0.5, method="obs", sensitivity=wish, provider="cpu")
        worst[wish] = pruned.report["discrepancy"]["y"]["relative_l2"]
    assert worst[True] < 0.9 * worst[False]


def test_sensitivity_that_is_not_known_is_as_none_asked_for() -> None:
    proto, x = muted()
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["k"], axis=1))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("k", 7, ["N", 1]))
    kept = [
        onnxdpp.prune(proto, {"x": x}, keep=0.25, method="obs", sensitivity=wish, provider="cpu").report["layers"][0]
        for wish in (True, False)
    ]
    assert kept[0]["keep"] == kept[1]["keep"]
