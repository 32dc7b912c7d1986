"""Polishing: steps against least squares, derivatives against Jacobians, outputs that come nearer, and what stays."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, constant, graph_of, model, normal, run
from onnx import ModelProto, numpy_helper

import onnxdpp
from onnxdpp.algebra.gauss_newton import RIDGE, steps
from onnxdpp.derivatives import derivatives
from onnxdpp.errors import UsageError
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.projections import find_projections

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
    original, pruned = graph_of(network()), graph_of(network(W1=normal(12, 40, seed=3)))
    part = next(part for part in find_projections(pruned)[0] if part.name == "fc2")
    batches = open_batches({"x": X}, input_specs(pruned.model))
    found = derivatives(original, pruned, part, batches, "cpu")
    assert found is not None
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
    old, new = (run(proto.model, {"x": rows.astype(np.float32)})[0].astype(float) for proto in (original, pruned))
    np.testing.assert_allclose(found[0], h, atol=1e-5)
    lack = old - new
    size = np.linalg.norm(lack)
    np.testing.assert_allclose(found[1][:, :4], lack / size, atol=1e-5)
    np.testing.assert_allclose(found[2][:, :4], jacobian / size, atol=0.05 * np.abs(jacobian / size).max())
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (old, new))
    a = (p + q) / 2
    g = (p - q) / np.sqrt(a)
    root = np.sqrt(a)[:, :, None] * (np.eye(4) - a[:, None, :])
    felt = root @ jacobian / np.linalg.norm(g)
    np.testing.assert_allclose(found[1][:, 4:], g / np.linalg.norm(g), atol=1e-5)
    np.testing.assert_allclose(found[2][:, 4:], felt, atol=0.05 * np.abs(felt).max())
    # Rᵀ (g / √a) is the gradient, and RᵀR the metric.
    np.testing.assert_allclose(np.einsum("rsi,rs->ri", root, g), p - q, atol=1e-12)
    np.testing.assert_allclose(root.transpose(0, 2, 1) @ root, a[:, :, None] * (np.eye(4) - a[:, None, :]), atol=1e-12)


def test_rows_held_out_are_not_fitted() -> None:
    graph = graph_of(network())
    part = find_projections(graph)[0][0]
    spoilt = X.copy()
    spoilt[4::5] = 99
    whole, other = (
        derivatives(
            graph_of(network(W3=normal(30, 4, seed=9))),
            graph,
            part,
            open_batches({"x": x}, input_specs(graph.model)),
            "cpu",
        )
        for x in (X, spoilt)
    )
    assert whole is not None
    assert other is not None
    for one, two in zip(whole, other, strict=True):
        np.testing.assert_array_equal(one, two)


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
    found = re.fullmatch(r"Polishing took (\d+) of (\d+) steps: discrepancy (\S+) to (\S+) on rows held out\.", told)
    assert found is not None
    assert float(found[4]) < float(found[3])
    again = onnxdpp.prune(network(), {"x": X}, polish=2, provider="cpu", **options)
    assert again.model.SerializeToString(deterministic=True) == polished.model.SerializeToString(deterministic=True)


def test_edges_that_are_zero_stay_zero() -> None:
    plain, polished = (
        onnxdpp.prune(network(), {"x": X}, keep=0.3, unit="edge", polish=n, provider="cpu", storage="dense")
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
    found = re.search(r"to (\S+) on rows held out", told)
    assert found is not None
    assert float(found[1]) <= 0.1


def test_batches_of_a_fixed_size() -> None:
    proto = network()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 8
    plain, polished = (onnxdpp.prune(proto, {"x": X}, keep=0.2, polish=n, provider="cpu") for n in (0, 1))
    outputs = [
        np.vstack([run(result, {"x": TEST[i : i + 8]})[0] for i in range(0, 496, 8)]).astype(float)
        for result in (proto, plain.model, polished.model)
    ]
    assert np.linalg.norm(outputs[2] - outputs[0]) < 0.97 * np.linalg.norm(outputs[1] - outputs[0])


def test_convolutions_are_not_polished_and_it_is_said() -> None:
    proto = model(
        """g (float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y) {
            [c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1, b1)  h = Relu(a)
            [c2] y = Conv (h, W2, b2)
        }""",
        W1=(8, 2, 3, 3), b1=(8,), W2=(3, 8, 1, 1), b2=(3,),
    )  # fmt: skip
    report = onnxdpp.prune(proto, {"x": normal(60, 2, 6, 6)}, keep=0.5, polish=1, provider="cpu").report
    assert any(notice.startswith("Nothing could be polished: no projection") for notice in report["notices"])


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
