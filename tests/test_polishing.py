"""Polishing: steps against least squares, derivatives against Jacobians, outputs that come nearer, and what stays."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, constant, graph_of, model, normal, run
from onnx import ModelProto, helper, numpy_helper

import onnxdpp
from onnxdpp import polishing
from onnxdpp.algebra.gauss_newton import RIDGE, steps
from onnxdpp.derivatives import Linearised, LinearisedByWeight, derivatives
from onnxdpp.errors import UsageError
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.moving import Move, Positions
from onnxdpp.graph.projections import find_projections
from onnxdpp.graph.rewriting import apply, reweighted

X = normal(1500, 12)
TEST = normal(500, 12, seed=5)


def network(**options: Any) -> ModelProto:
    """Two hidden layers. Layers: fc1 (40), fc2 (30); outputs: scores of 4 classes."""
    return model(
        """g (float[N, 12] x) => (float[N, 4] y) {
            [fc1] a = Gemm(x, W1, b1)  h = Tanh(a)
            [fc2] c = Gemm <transB = 1> (h, W2, b2)  k = Sigmoid(c)
            [fc3] d = MatMul(k, W3)  y = Add(d, b3)
        }""",
        **{
            "W1": (12, 40), "b1": (40,), "W2": (30, 40), "b2": (30,), "W3": (30, 4), "b3": (4,), **options,
        },
    )  # fmt: skip


def error(pruned: ModelProto, original: ModelProto, x: Array = TEST) -> float:
    """Relative L2 on rows that nothing was fitted to."""
    before, after = (run(proto, {"x": x})[0].astype(float) for proto in (original, pruned))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


# Steps


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_many_iterations_solve_the_ridged_least_squares(seed: int, intercept: bool) -> None:
    rng = np.random.default_rng(seed)
    r, n, s, m = 60, 3, 2, 2
    x, errors, jacobians = rng.normal(size=(r, n)), rng.normal(size=(r, s)), rng.normal(size=(r, s, m))
    free = rng.random((n, m)) < 0.7
    wide = np.hstack([x, np.ones((r, 1))]) if intercept else x
    design = np.einsum("ri,rsj->rsij", wide, jacobians).reshape(r * s, -1)
    moves = np.vstack([free, np.ones((1, m), bool)]).ravel() if intercept else free.ravel()
    design = design[:, moves]
    normal_matrix = design.T @ design
    wanted = np.zeros(len(moves))
    if moves.any():
        ridge = RIDGE * np.diag(np.diag(normal_matrix))
        wanted[moves] = np.linalg.solve(normal_matrix + ridge, design.T @ errors.ravel())
    found = list(steps(x, errors, jacobians, free, intercept=intercept, iterations=(40,)))
    weights, bias = found[-1] if found else (np.zeros((n, m)), np.zeros(m) if intercept else None)
    both = weights if bias is None else np.vstack([weights, bias])
    np.testing.assert_allclose(both.ravel(), wanted, atol=1e-6)
    assert (bias is None) != intercept
    assert not weights[~free].any()


def test_steps_grow_from_tame_to_bold() -> None:
    rng = np.random.default_rng(0)
    x, errors, jacobians = rng.normal(size=(80, 6)), rng.normal(size=(80, 3)), rng.normal(size=(80, 3, 5))
    sizes = [np.linalg.norm(weights) for weights, _ in steps(x, errors, jacobians, iterations=(1, 2, 4, 8))]
    assert len(sizes) == 4
    assert sizes == sorted(sizes)


def test_nothing_missing_or_nothing_felt_gives_no_step() -> None:
    x, none = normal(20, 3).astype(float), np.zeros((20, 2))
    assert not list(steps(x, none, np.ones((20, 2, 4))))
    assert not list(steps(x, none + 1, np.zeros((20, 2, 4))))


# Derivatives


def test_derivatives_are_jacobians_of_the_outputs_and_of_their_softmax() -> None:
    original, pruned = network(), graph_of(network(W1=normal(12, 40, seed=3)))
    part = next(part for part in find_projections(pruned)[0] if part.name == "fc2")
    batches = open_batches({"x": X}, input_specs(pruned.model))
    found = derivatives(Session(original, "cpu"), pruned, part, batches, "cpu")
    assert isinstance(found, Linearised)
    rows = X[np.arange(len(X)) % 5 != 4].astype(float)
    w1, b1, w2, b2, w3 = (
        numpy_helper.to_array(tensor).astype(float)
        for name in ("W1", "b1", "W2", "b2", "W3")
        for tensor in pruned.model.graph.initializer
        if tensor.name == name
    )
    h = np.tanh(rows @ w1 + b1)
    k = 1 / (1 + np.exp(-(h @ w2.T + b2)))
    jacobian = (k * (1 - k))[:, None, :] * w3.T
    old, new = (run(proto, {"x": rows.astype(np.float32)})[0].astype(float) for proto in (original, pruned.model))
    np.testing.assert_allclose(found.x, h, atol=1e-5)
    lack = old - new
    size = np.linalg.norm(lack)
    np.testing.assert_allclose(found.errors[:, :4], lack / size, atol=1e-5)
    np.testing.assert_allclose(found.jacobians[:, :4], jacobian / size, atol=0.05 * np.abs(jacobian / size).max())
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (old, new))
    a = (p + q) / 2
    g = (p - q) / np.sqrt(a)
    root = np.sqrt(a)[:, :, None] * (np.eye(4) - a[:, None, :])
    felt = root @ jacobian / np.linalg.norm(g)
    np.testing.assert_allclose(found.errors[:, 4:], g / np.linalg.norm(g), atol=1e-5)
    np.testing.assert_allclose(found.jacobians[:, 4:], felt, atol=0.05 * np.abs(felt).max())
    # Rᵀ (g / √a) is the gradient, and RᵀR the metric.
    np.testing.assert_allclose(np.einsum("rsi,rs->ri", root, g), p - q, atol=1e-12)
    np.testing.assert_allclose(root.transpose(0, 2, 1) @ root, a[:, :, None] * (np.eye(4) - a[:, None, :]), atol=1e-12)


def same(whole: Linearised | LinearisedByWeight | None, other: Linearised | LinearisedByWeight | None) -> None:
    """To the last bit."""
    assert whole is not None
    assert type(whole) is type(other)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(other, field.name))


def test_rows_held_out_are_not_fitted() -> None:
    graph = graph_of(network())
    part = find_projections(graph)[0][0]
    spoilt = X.copy()
    spoilt[4::5] = 99
    whole, other = (
        derivatives(
            Session(network(W3=normal(30, 4, seed=9)), "cpu"),
            graph,
            part,
            open_batches({"x": x}, input_specs(graph.model)),
            "cpu",
        )
        for x in (X, spoilt)
    )
    same(whole, other)


# Derivatives by single weights


WEIGHTED = {
    "Conv": ("y = Conv <pads = [1, 0, 1, 2], strides = [2, 1]> (x, W, b)", (6, 4, 3, 2), 6),
    "groups": ("y = Conv <group = 2, dilations = [1, 2]> (x, W, b)", (6, 2, 2, 2), 6),
    "ConvTranspose": (
        "y = ConvTranspose <group = 2, strides = [2, 1], pads = [1, 0, 0, 1]> (x, W, b)", (4, 3, 3, 2), 6,
    ),
    "tokens": ("c = MatMul(x, W)  y = Add(c, b)", (6, 3), 3),
    "transposed": ("z = Reshape(x, shape)  y = Gemm <transB = 1, alpha = -0.5, beta = 2.0> (z, W, b)", (3, 6), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_moves_are_those_of_the_weights(name: str) -> None:
    """Every weight and every bias, in every layout, against the node with that constant edited."""
    text, shape, m = WEIGHTED[name]
    rank = 2 if name == "transposed" else 4
    axes = ", ".join("ABCD"[:rank])
    proto = model(
        f"g (float[N, 4, 5, 6] x) => (float[{axes}] y) {{ {text} }}",
        W=shape, b=(m,), shape=np.array([-1, 6]),
    )  # fmt: skip
    graph = graph_of(proto)
    (part,) = find_projections(graph)[0]
    tap = normal(3, 4, 5, 6)
    x = tap.reshape(-1, 6) if name == "transposed" else tap
    at = Positions(part, x, run(proto, {"x": tap})[0])
    weights = part.effective(constant(proto, "W"))
    for i, j in np.ndindex(weights.shape):
        edited = weights.copy()
        edited[i, j] += 0.5
        expected = run(apply(graph, reweighted(graph, part, edited, None)), {"x": tap})[0]
        np.testing.assert_allclose(at.moved(Move(i, j), 0.5), expected, atol=1e-5)
    for j in range(m):
        expected = run(apply(graph, reweighted(graph, part, weights, 0.5 * np.eye(m)[j])), {"x": tap})[0]
        np.testing.assert_allclose(at.moved(Move(None, j), 0.5), expected, atol=1e-5)


def images(**options: Any) -> ModelProto:
    """Two convolutions. Layers: c1 (8), c2 (6); outputs: scores of 4 classes."""
    return model(
        """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
            [c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1, b1)  h = Relu(a)
            [c2] c = Conv (h, W2, b2)  k = Tanh(c)  f = Flatten(k)
            [fc] y = Gemm(f, W3, b3)
        }""",
        **{
            "W1": normal(8, 2, 3, 3, seed=2) / 4, "b1": (8,), "W2": normal(6, 8, 3, 3, seed=3) / 8, "b2": (6,),
            "W3": (96, 4), "b3": (4,), **options,
        },
    )  # fmt: skip


IMAGES = normal(2400, 2, 6, 6)


def test_a_linear_model_is_set_right_by_its_last_step() -> None:
    """Layers: c1 (3). What was disturbed are weights of the first convolution: all follows from the outputs."""

    def linear(**options: Any) -> ModelProto:
        return model(
            """g (float[N, 2, 4, 4] x) => (float[N, 4, 5] y) {
                [c1] h = Conv (x, W1, b1)  f = Flatten(h)  c = MatMul(f, W2)  y = Reshape(c, shape)
            }""",
            **{
                "W1": normal(3, 2, 2, 2), "b1": normal(3), "W2": normal(27, 20), "shape": np.array([-1, 4, 5]),
                **options,
            },
        )  # fmt: skip

    w = constant(linear(), "W1")
    graph = graph_of(linear(W1=w + normal(*w.shape, seed=8), b1=np.zeros(3, np.float32)))
    part = find_projections(graph)[0][0]
    batches = open_batches({"x": normal(400, 2, 4, 4)}, input_specs(graph.model))
    found = derivatives(Session(linear(), "cpu"), graph, part, batches, "cpu")
    assert isinstance(found, LinearisedByWeight)
    *_, (step, bias) = found.steps()
    assert bias is not None
    now = part.effective(constant(graph.model, "W1"))
    np.testing.assert_allclose(now + step, part.effective(w), atol=0.02 * np.abs(w).max())
    np.testing.assert_allclose(bias, constant(linear(), "b1"), atol=0.02)


def test_rows_held_out_are_not_fitted_by_weights() -> None:
    graph = graph_of(images(W3=normal(96, 4, seed=9)))
    spoilt = IMAGES.copy()
    spoilt[4::5] = 99
    for part in find_projections(graph)[0][:2]:
        whole, other = (
            derivatives(Session(images(), "cpu"), graph, part, open_batches({"x": x}, input_specs(graph.model)), "cpu")
            for x in (IMAGES, spoilt)
        )
        assert isinstance(whole, LinearisedByWeight)
        same(whole, other)


@pytest.mark.parametrize("batch", [0, 8])
@pytest.mark.parametrize("unit", ["neuron", "edge"])
def test_convolutions_are_polished(unit: str, batch: int) -> None:
    proto = fixed(images(), batch) if batch else images()
    plain, polished = (
        onnxdpp.prune(
            proto, {"x": IMAGES}, keep=0.5, unit=unit, storage="dense", polish=n, provider="cpu", method="dpp"
        )
        for n in (0, 1)
    )
    rows = normal(200, 2, 6, 6, seed=5)
    outputs = [
        np.vstack([run(result, {"x": part})[0] for part in rows.reshape(-1, batch or 200, 2, 6, 6)]).astype(float)
        for result in (proto, plain.model, polished.model)
    ]
    assert np.linalg.norm(outputs[2] - outputs[0]) < 0.98 * np.linalg.norm(outputs[1] - outputs[0])
    for name in ("W1", "W2"):
        before, after = (constant(result.model, name) for result in (plain, polished))
        assert not np.array_equal(before, after)
        np.testing.assert_array_equal(before == 0, after == 0)


def tokens(head: str = "y = MatMul(h, W2)", **options: Any) -> ModelProto:
    """A layer of tokens. Layers: fc1 (12); outputs: 3 numbers for each token."""
    return model(
        f"g (float[N, T, 6] x, float[N, T] m) => (float[N, T, 3] y) {{ [fc1] a = MatMul(x, W1)  h = Tanh(a)  {head} }}",
        **{"W1": (6, 12), "W2": (12, 3), **options},
    )


def masked(rows: int, seed: int) -> dict[str, Array]:
    """Five tokens for each row, of which the last ones are padding, full of what is no data."""
    x, count = normal(rows, 5, 6, seed=seed), np.random.default_rng(seed).integers(2, 5, rows)
    m = (np.arange(5) < count[:, None]).astype(np.float32)
    return {"x": np.where(m[..., None] == 0, 5 * normal(rows, 5, 6, seed=seed + 1), x), "m": m}


def test_padding_counts_for_nothing() -> None:
    graph, changed = graph_of(tokens(W2=normal(12, 3, seed=4))), masked(100, 1)
    spoilt = {**changed, "x": np.where(changed["m"][..., None] == 0, 99, changed["x"]).astype(np.float32)}
    part = find_projections(graph)[0][1]
    whole, other = (
        derivatives(
            Session(tokens(), "cpu"), graph, part, open_batches(data, input_specs(graph.model)), "cpu", mask="m"
        )
        for data in (changed, spoilt)
    )
    assert isinstance(whole, LinearisedByWeight)
    assert isinstance(other, LinearisedByWeight)
    np.testing.assert_array_equal(whole.errors, other.errors)
    scale = np.abs(whole.jacobians).max()
    np.testing.assert_allclose(whole.jacobians, other.jacobians, atol=1e-3 * scale)  # the sizes of moves differ


def test_tokens_are_polished_where_they_are_no_padding() -> None:
    wish = {"keep": 0.5, "method": "dpp", "mask": "m", "provider": "cpu"}
    fresh = masked(200, 7)
    distances = []
    for rounds in (0, 2):
        pruned = onnxdpp.prune(tokens(), masked(300, 3), polish=rounds, **wish).model
        old, new = (run(proto, fresh)[0][fresh["m"] != 0] for proto in (tokens(), pruned))
        distances.append(np.linalg.norm(new - old))
    assert distances[1] < 0.97 * distances[0]


def test_rows_of_several_shapes_are_left_alone_where_their_outputs_are() -> None:
    data = [{"x": normal(100, length, 6), "m": np.ones((100, length), np.float32)} for length in (5, 7)]
    assert notice(tokens(), data, keep=0.5).startswith("Nothing could be polished: ")


@pytest.mark.parametrize("text", ["z = Slice(y, zero, zero, two)", "z = Identity(y)"])
def test_outputs_without_entries_tell_nothing(text: str) -> None:
    proto = model(
        f"g (float[N, 2, 6, 6] x) => (float[N, 4] y, float[N, Q] z) {{ {BODY} {text} }}",
        W1=(8, 2, 3, 3), b1=(8,), W2=(4, 8, 3, 3), zero=np.array([0]), two=np.array([1]),
    )  # fmt: skip
    assert "Polishing took" in notice(proto, {"x": normal(200, 2, 6, 6)}, keep=0.5)


BODY = "[c1] a = Conv (x, W1, b1)  h = Relu(a)  [c2] c = Conv (h, W2)  p = GlobalAveragePool(c)  y = Flatten(p)"


def test_one_position_for_each_row_is_moved_by_outputs() -> None:
    """However many axes there are: the convolution behind a pooling is a Gemm."""
    text = "p = GlobalAveragePool(x)  [c1] a = Conv (p, W1, b1)  h = Tanh(a)  [c2] c = Conv (h, W2)  y = Flatten(c)"
    proto, flat = (
        model(
            f"g (float[N, 12, 3, 3] x) => (float[N, 4] y) {{ {graph} }}",
            W1=(40, 12, *ones),
            b1=(40,),
            W2=(4, 40, *ones),
        )
        for graph, ones in (
            (text, (1, 1)),
            (
                "q = GlobalAveragePool(x)  p = Flatten(q)  [c1] a = Gemm <transB = 1> (p, W1, b1)  h = Tanh(a)"
                "[c2] y = Gemm <transB = 1> (h, W2)",
                (),
            ),
        )
    )
    data = normal(200, 12, 3, 3)
    lin = []
    for network in (proto, flat):
        disturbed = ModelProto()
        disturbed.CopyFrom(network)
        weight = next(tensor for tensor in disturbed.graph.initializer if tensor.name == "W2")
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), "W2"))
        graph = graph_of(disturbed)
        batches = open_batches({"x": data}, input_specs(network))
        lin.append(derivatives(Session(network, "cpu"), graph, find_projections(graph)[0][0], batches, "cpu"))
    conv, gemm = lin
    assert isinstance(conv, Linearised)
    assert isinstance(gemm, Linearised)
    np.testing.assert_allclose(conv.jacobians, gemm.jacobians, atol=1e-3 * np.abs(gemm.jacobians).max())
    np.testing.assert_allclose(conv.x, gemm.x, atol=1e-5)


def test_weights_in_constant_nodes_are_polished_alike() -> None:
    inside = network()
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in inside.graph.initializer]
    outside = ModelProto()
    outside.CopyFrom(inside)
    del outside.graph.initializer[:], outside.graph.node[:]
    outside.graph.node.extend([*nodes, *inside.graph.node])
    steps_of = [re.search("took (.*) steps", notice(proto)) for proto in (inside, outside)]
    assert steps_of[0] is not None
    assert steps_of[1] is not None
    assert steps_of[0][1] == steps_of[1][1]


# Whole models


@pytest.mark.parametrize(
    "options",
    [{"keep": 0.2}, {"keep": 0.2, "method": "random"}, {"keep": 0.3, "unit": "edge"}, {"keep": 0.2, "refit": "linear"}],
)
def test_outputs_come_nearer_on_rows_never_seen(options: dict[str, Any]) -> None:
    plain, polished = (onnxdpp.prune(network(), {"x": X}, polish=n, provider="cpu", **options) for n in (0, 2))
    assert error(polished.model, network()) < 0.97 * error(plain.model, network())
    assert plain.report["model"]["after"] | {"sha256": ""} == polished.report["model"]["after"] | {"sha256": ""}
    (told,) = (notice for notice in polished.report["notices"] if notice.startswith("Polishing took"))
    pattern = r"Polishing took (\d+) of (\d+) steps: discrepancy (\S+) to (\S+) on rows that no step was fitted to\."
    found = re.fullmatch(pattern, told)
    assert found is not None
    assert float(found[4]) < float(found[3])
    again = onnxdpp.prune(network(), {"x": X}, polish=2, provider="cpu", **options)
    assert again.model.SerializeToString(deterministic=True) == polished.model.SerializeToString(deterministic=True)


def test_probabilities_come_nearer() -> None:
    """Rows near 0 and 1 hardly move where the scores behind the softmax do."""
    proto = model(
        """g (float[N, 12] x) => (float[N, 4] y) {
            [fc1] a = Gemm(x, W1, b1)  h = Tanh(a)
            [fc2] c = Gemm(h, W2, b2)  k = Tanh(c)
            [fc3] d = MatMul(k, W3)  y = Softmax(d)
        }""",
        W1=(12, 40), b1=(40,), W2=(40, 30), b2=(30,), W3=(30, 4),
    )  # fmt: skip
    plain, polished = (onnxdpp.prune(proto, {"x": X}, keep=0.2, polish=n, provider="cpu") for n in (0, 2))
    assert error(polished.model, proto) < 0.93 * error(plain.model, proto)


def test_edges_that_are_zero_stay_zero() -> None:
    plain, polished = (
        onnxdpp.prune(network(), {"x": X}, keep=0.3, unit="edge", storage="dense", polish=n, provider="cpu")
        for n in (0, 1)
    )
    moved = 0
    for name in ("W1", "W2", "W3"):
        before, after = (constant(result.model, name) for result in (plain, polished))
        np.testing.assert_array_equal(before == 0, after == 0)
        moved += not np.array_equal(before, after)
    assert moved


def test_layers_left_alone_are_not_polished() -> None:
    result = onnxdpp.prune(network(), {"x": X}, keep=0.2, layers="fc1", polish=1, provider="cpu")
    np.testing.assert_array_equal(constant(result.model, "W3"), constant(network(), "W3"))
    np.testing.assert_array_equal(constant(result.model, "b3"), constant(network(), "b3"))


def test_keeping_everything_is_left_as_it_is() -> None:
    result = onnxdpp.prune(network(), {"x": X}, keep=1.0, polish=1, provider="cpu")
    assert error(result.model, network()) < 1e-5


def test_target_is_still_kept() -> None:
    report = onnxdpp.prune(network(), {"x": X}, target_discrepancy=0.1, polish=1, provider="cpu").report
    (told,) = (notice for notice in report["notices"] if notice.startswith("Polishing took"))
    found = re.search(r"to (\S+) on rows that no step", told)
    assert found is not None
    assert float(found[1]) <= 0.1


def test_batches_of_a_fixed_size() -> None:
    proto = fixed(network(), 8)
    plain, polished = (onnxdpp.prune(proto, {"x": X}, keep=0.2, polish=n, provider="cpu") for n in (0, 1))
    outputs = [
        np.vstack([run(result, {"x": TEST[i : i + 8]})[0] for i in range(0, 496, 8)]).astype(float)
        for result in (proto, plain.model, polished.model)
    ]
    assert np.linalg.norm(outputs[2] - outputs[0]) < 0.97 * np.linalg.norm(outputs[1] - outputs[0])


def fixed(proto: ModelProto, rows: int) -> ModelProto:
    """The same model, with batches of one size."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = rows
    return proto


def notice(proto: ModelProto, data: Any = None, **options: Any) -> str:
    """What is said of polishing."""
    wish = {"keep": 0.3, "polish": 1, "provider": "cpu", "method": "dpp", **options}
    notices = onnxdpp.prune(proto, {"x": X} if data is None else data, **wish).report["notices"]
    (told,) = (line for line in notices if "polish" in line.lower())
    return str(told)


def test_rows_held_out_are_not_fitted_in_batches_of_a_fixed_size() -> None:
    graph = graph_of(fixed(network(), 8))
    part = next(part for part in find_projections(graph)[0] if part.name == "fc2")
    spoilt = X.copy()
    spoilt[4::5] = 99
    original = Session(fixed(network(W3=normal(30, 4, seed=9)), 8), "cpu")
    whole, other = (
        derivatives(original, graph, part, open_batches({"x": x}, input_specs(graph.model)), "cpu") for x in (X, spoilt)
    )
    same(whole, other)


def test_single_rows_of_an_output_may_add_up_to_one() -> None:
    """Layers: fc1 (40); outputs: two probabilities that are none of each other's, some rows of which sum up to 1."""
    proto = model(
        """g (float[1, 12] x) => (float[1, 2] y) {
            [fc1] a = Gemm(x, W1, b1)  h = Tanh(a)
            [fc2] c = Gemm(h, W2, b2)  y = Sigmoid(c)
        }""",
        W1=(12, 40), b1=(40,), W2=(40, 2), b2=(2,),
    )  # fmt: skip
    assert notice(proto).startswith("Polishing took 2 of 2 steps")


def test_projection_of_a_constant_is_left_alone() -> None:
    """Layers: fc1 (40), of which `table` @ W0 is added to every row."""
    proto = model(
        """g (float[N, 12] x) => (float[N, 4] y) {
            [fc0] t = MatMul(table, W0)
            [fc1] a = Gemm(x, W1, b1)  b = Add(a, t)  h = Tanh(b)
            [fc2] y = Gemm(h, W2, b2)
        }""",
        table=(1, 8), W0=(8, 40), W1=(12, 40), b1=(40,), W2=(40, 4), b2=(4,),
    )  # fmt: skip
    assert " of 2 steps" in notice(proto)  # fc1 and fc2
    result = onnxdpp.prune(proto, {"x": X}, keep=0.3, method="dpp", provider="cpu")
    graph, batches = graph_of(result.model), open_batches({"x": X}, input_specs(proto))
    part = next(part for part in find_projections(graph)[0] if part.name == "fc0")
    assert derivatives(Session(proto, "cpu"), graph, part, batches, "cpu") is None


def test_outputs_that_filter_rows_are_not_looked_at() -> None:
    """Layers: fc1 (40); z has those rows of y that add up to more than all do at first."""
    text = """g (float[N, 12] x) => (float[N, 4] y, float[M, 4] z, float[N] s) {
        [fc1] a = Gemm(x, W1, b1)  h = Relu(a)
        [fc2] y = Gemm(h, W2, b2)
        s = ReduceSum <keepdims = 0> (y, one)  q = Greater(s, least)  z = Compress <axis = 0> (y, q)
    }"""
    weights: dict[str, Any] = {"W1": (12, 40), "b1": (40,), "W2": (40, 4), "b2": (4,), "one": np.array([1])}
    sums = run(model(text, **weights, least=np.float32(-1e9)), {"x": X})[2]
    told = notice(model(text, **weights, least=np.float32(sums.min() - 0.5)), keep=0.9)
    assert re.match("Polishing took [12] of 2 steps", told)


def test_outputs_whose_softmax_says_nothing_come_nearer() -> None:
    far = network(W3=normal(30, 4) * 1000, b3=np.array([0, 1e4, -1e4, 3e4], np.float32))
    assert re.match("Polishing took [123] of 3 steps", notice(far))


def test_model_does_not_grow() -> None:
    """Layers: fc1 (40), fc2 (30), fc3 (30). A bias of one entry, and one that two nodes read."""
    proto = model(
        """g (float[N, 12] x) => (float[N, 4] y) {
            [fc1] a = MatMul(x, W1)  b = Add(a, b1)  h = Tanh(b)
            [fc2] c = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (h, W2, b2)  k = Sigmoid(c)
            [fc3] d = Gemm <alpha = -3.0> (h, W3, b2)  l = Tanh(d)
            [fc4] e = MatMul(k, W4)
            [fc5] f = MatMul(l, W5)
            y = Add(e, f)
        }""",
        W1=(12, 40), b1=np.ones((), np.float32), W2=(30, 40), W3=(40, 30), b2=(30,), W4=(30, 4), W5=(30, 4),
    )  # fmt: skip
    for wish in ({"target_parameters": 0.3, "keep": None}, {"layers": "fc1"}):
        sizes = [
            onnxdpp.prune(proto, {"x": X}, **{"keep": 0.3, "provider": "cpu", "polish": n, **wish}).report["model"]
            for n in (0, 2)
        ]
        assert sizes[0]["after"]["parameters"] == sizes[1]["after"]["parameters"]
        assert sizes[0]["after"]["sha256"] != sizes[1]["after"]["sha256"]


def test_model_with_external_data(tmp_path: Path) -> None:
    proto = network(W1=(12, 120), b1=(120,), W2=(100, 120), b2=(100,), W3=(100, 4))
    inside = onnxdpp.prune(proto, {"x": X}, keep=0.3, method="dpp", polish=2, provider="cpu")
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    result = onnxdpp.prune(tmp_path / "m.onnx", {"x": X}, keep=0.3, method="dpp", polish=2, provider="cpu")
    result.save(tmp_path / "out.onnx")
    expected = run(inside.model, {"x": TEST})[0]
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "out.onnx"), {"x": TEST})[0], expected)


def test_target_that_the_judge_does_not_see_is_still_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polishing, "compare", lambda *args, **options: SimpleNamespace(worst=0.2))
    plain = onnxdpp.prune(network(), {"x": X}, target_discrepancy=0.1, provider="cpu")
    undone = onnxdpp.prune(network(), {"x": X}, target_discrepancy=0.1, polish=1, provider="cpu")
    assert any(line.startswith("Polishing was undone: with ") for line in undone.report["notices"])
    assert undone.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("rows", [5, 38])
def test_too_few_rows_are_said(rows: int) -> None:
    told = notice(network(), {"x": X[:rows]})
    assert told == f"Nothing could be polished: it takes 32 rows to fit, and there are {rows - rows // 5}."


@pytest.mark.parametrize(("rows", "tried"), [(100, 2), (60, 1), (40, 0)])
def test_convolution_with_more_weights_than_the_data_tell_of_is_left_alone(rows: int, tried: int) -> None:
    """Layers: c1 (16). Of 8 of them there are 144 weights, and 288 behind, to 80, 48 and 32 rows of 4 numbers."""
    proto = model(
        """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
            [c1] a = Conv <strides = [3, 3]> (x, W1)  h = Relu(a)
            [c2] c = Conv <pads = [1, 1, 1, 1]> (h, W2)  p = GlobalAveragePool(c)  y = Flatten(p)
        }""",
        W1=(16, 2, 3, 3), W2=(4, 16, 3, 3),
    )  # fmt: skip
    told = notice(proto, {"x": normal(rows, 2, 6, 6)}, keep=0.5)
    if tried:
        assert f" of {tried} steps" in told
    else:
        assert "or the layers have more weights than can be told from the data" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polish": -1}, "polish is -1; it must be at least 0."),
        ({"polish": 1, "refit": "none"}, "Polishing goes on where a refit ends."),
    ],
)
def test_polish_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        onnxdpp.prune(network(), {"x": X}, keep=0.5, provider="cpu", **options)
