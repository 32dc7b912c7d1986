"""`prune`, end to end on small models: what the answers, the weights and the report must be."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from jsonschema import Draft202012Validator
from models import model
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxdpp
from onnxdpp.errors import NothingToPrune, OnnxdppError, UsageError
from onnxdpp.report import schema, to_json

Array = NDArray[Any]
Matrix = NDArray[np.float64]
UNITS = pytest.mark.parametrize("unit", ["neuron", "edge"])
FORMS = pytest.mark.parametrize("refit", ["affine", "linear"])


def node(kind: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    dtype: Any = np.float64,
) -> ModelProto:
    """Build a model of one float type, its constants as initializers."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array, dtype), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(widths: Sequence[int], seed: int = 0) -> dict[str, Matrix]:
    """Weights w1, w2, ... and biases b1, b2, ... of a dense network."""
    rng = np.random.default_rng(seed)
    constants = {}
    for layer, (n, m) in enumerate(pairwise(widths), start=1):
        constants[f"w{layer}"] = rng.standard_normal((n, m)) * 1.5 / np.sqrt(n)
        constants[f"b{layer}"] = 0.5 * rng.standard_normal(m)
    return constants


def mlp(
    widths: Sequence[int], constants: Mapping[str, Array], activation: str = "Tanh", dtype: Any = np.float64
) -> Any:
    """Gemms fc1, fc2, ... with an activation between them: x -> y."""
    nodes, value = [], "x"
    for layer in range(1, len(widths)):
        last = layer == len(widths) - 1
        nodes.append(node("Gemm", f"{value} w{layer} b{layer}", "y" if last else f"h{layer}", f"fc{layer}"))
        if not last:
            nodes.append(node(activation, f"h{layer}", f"a{layer}"))
            value = f"a{layer}"
    return model_of(nodes, constants, {"x": ["N", widths[0]]}, {"y": ["N", widths[-1]]}, dtype)


def rows(count: int, width: int, seed: int = 1, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


def run(model: ModelProto, *outputs: str, **feeds: Array) -> list[Array]:
    """Run with onnxruntime; with `outputs`, values inside of the model instead of its outputs."""
    if outputs:
        kind = model.graph.input[0].type.tensor_type.elem_type
        inner = ModelProto()
        inner.CopyFrom(model)
        del inner.graph.output[:]
        inner.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in outputs)
        model = inner
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def constants_of(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def prune(model: Any, calib: Any, **options: Any) -> onnxdpp.PruneResult:
    return onnxdpp.prune(model, calib, **{"keep": 0.5, "provider": "cpu", **options})


def without_seconds(report: Mapping[str, Any]) -> dict[str, Any]:
    layers = [{**layer, "seconds": 0} for layer in report["layers"]]
    return {**report, "seconds": 0, "layers": layers, "options": {**report["options"], "calib": None}}


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def loss(found: Array, expected: Array) -> float:
    """Residual relative to what a constant would leave."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(0)))


WIDTHS = (6, 20, 16, 4)


@pytest.fixture(scope="module")
def net() -> ModelProto:
    """6 -> fc1 20 -> Tanh -> fc2 16 -> Tanh -> fc3 4, float64."""
    return mlp(WIDTHS, drawn(WIDTHS))


@pytest.fixture(scope="module")
def x() -> Array:
    return rows(300, 6)


# Keep everything


@UNITS
@pytest.mark.parametrize("method", ["dpp", "dpp-sample", "importance", "random"])
def test_keep_1_without_refit_gives_the_same_bits(unit: str, method: str, net: ModelProto, x: Array) -> None:
    result = prune(net, {"x": x}, keep=1.0, unit=unit, refit="none", method=method)
    assert run(result.model, x=x)[0].tobytes() == run(net, x=x)[0].tobytes()
    assert result.model == net


@UNITS
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_keep_1_without_refit_leaves_weights_under_an_alpha_to_the_bit(unit: str, dtype: Any, seed: int) -> None:
    constants = drawn((6, 20, 4), seed)
    constants["w2"] = constants["w2"].T
    model = model_of(
        [
            node("Gemm", "x w1 b1", "h", "fc1", alpha=0.3, beta=0.7),
            node("Relu", "h", "a"),
            node("Gemm", "a w2 b2", "y", "fc2", alpha=0.7, transB=1),
        ],
        constants,
        {"x": ["N", 6]},
        {"y": ["N", 4]},
        dtype,
    )
    calib = rows(50, 6, dtype=dtype)
    assert prune(model, {"x": calib}, keep=1.0, unit=unit, refit="none").model == model


@UNITS
@FORMS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keep_1_with_refit_gives_the_same_answers(unit: str, refit: str, dtype: Any) -> None:
    model = mlp(WIDTHS, drawn(WIDTHS), dtype=dtype)
    calib, test = rows(300, 6, dtype=dtype), 2 * rows(100, 6, 5, dtype)
    result = prune(model, {"x": calib}, keep=1.0, unit=unit, refit=refit)
    assert relative(run(result.model, x=test)[0], run(model, x=test)[0]) <= 1e-5
    assert all(layer["loss"] <= 1e-5 for layer in result.report["layers"])


@UNITS
def test_keep_1_with_refit_on_fewer_rows_than_neurons_gives_the_same_answers(unit: str, net: ModelProto) -> None:
    result = prune(net, {"x": rows(5, 6)}, keep=1.0, unit=unit)
    test = 2 * rows(100, 6, 5)
    assert relative(run(result.model, x=test)[0], run(net, x=test)[0]) <= 1e-5


# The whole sequential algorithm, in numpy


def solved(x: Matrix, y: Matrix, weights: Matrix, form: str) -> tuple[Matrix, Matrix]:
    """New weights and intercept of the kept inputs x, by lstsq with the ridge of DESIGN towards `weights`."""
    if form == "none":
        return weights, np.zeros(y.shape[1])
    mean_x, mean_y = (x.mean(0), y.mean(0)) if form == "affine" else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    centred = x - mean_x
    ridge = np.sqrt((1e-6 if form == "affine" else 1e-10) * (centred**2).sum() / x.shape[1])
    below = ridge * np.eye(x.shape[1])
    found = np.linalg.lstsq(np.vstack([centred, below]), np.vstack([y - mean_y, below @ weights]))[0]
    return found, mean_y - mean_x @ found


def prune_neurons_in_numpy(x: Matrix, constants: Mapping[str, Matrix], depth: int, k: Sequence[int], form: str) -> Any:
    """Importance, layer by layer: each refit sees what the pruned layers before it made of the rows."""
    new, losses = dict(constants), []
    now = before = x
    for layer in range(1, depth):
        w, b, nxt = f"w{layer}", f"b{layer}", f"w{layer + 1}"
        before = np.tanh(before @ constants[w] + constants[b])
        keep = np.sort(np.argsort(-np.abs(constants[nxt]).mean(1))[: k[layer - 1]])
        new[w], new[b] = new[w][:, keep], new[b][keep]
        now = np.tanh(now @ new[w] + new[b])
        y = before @ constants[nxt]
        new[nxt], intercept = solved(now, y, constants[nxt][keep], form)
        new[f"b{layer + 1}"] = constants[f"b{layer + 1}"] + intercept
        losses.append(loss(now @ new[nxt] + intercept, y))
    return new, losses


def prune_edges_in_numpy(x: Matrix, constants: Mapping[str, Matrix], depth: int, k: Sequence[int], form: str) -> Any:
    new, losses = dict(constants), []
    now = before = x
    for layer in range(1, depth + 1):
        w, b = f"w{layer}", f"b{layer}"
        y = before @ constants[w]
        kept = np.argsort(-np.abs(constants[w]), axis=0)[: k[layer - 1]]
        new[w], new[b] = np.zeros_like(constants[w]), constants[b].copy()
        for j, keep in enumerate(kept.T):
            found, intercept = solved(now[:, keep], y[:, [j]], constants[w][keep][:, [j]], form)
            new[w][keep, j] = found[:, 0]
            new[b][j] += intercept[0]
        losses.append(loss(now @ new[w] + new[b] - constants[b], y))
        before, now = np.tanh(before @ constants[w] + constants[b]), np.tanh(now @ new[w] + new[b])
    return new, losses


@pytest.mark.parametrize("form", ["affine", "linear", "none"])
@UNITS
def test_sequential_pruning_is_that_of_numpy(form: str, unit: str) -> None:
    widths = (6, 20, 16, 12, 4)
    constants, calib = drawn(widths, 3), rows(400, 6)
    result = prune(mlp(widths, constants), {"x": calib}, unit=unit, method="importance", refit=form, batch_size=64)
    expect = prune_neurons_in_numpy if unit == "neuron" else prune_edges_in_numpy
    k = (10, 8, 6) if unit == "neuron" else (3, 10, 8, 6)
    expected, losses = expect(calib, constants, 4, k, form)
    found = constants_of(result.model)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)
    assert [layer["loss"] for layer in result.report["layers"]] == pytest.approx(losses, rel=1e-4, abs=1e-7)


@UNITS
def test_later_refit_repairs_the_drift_of_the_first_layers(unit: str, net: ModelProto, x: Array) -> None:
    """All layers together; against the same choice refitted as if nothing before had been pruned."""
    options = {"unit": unit, "method": "importance"}
    together = prune(net, {"x": x}, **options).model
    first, second, *third = (
        prune(net, {"x": x}, layers=[name], **options) for name in ("fc1", "fc2", "fc3")[: 2 if unit == "neuron" else 3]
    )
    if unit == "neuron":
        keep = second.report["layers"][0]["keep"]
        values = constants_of(first.model)
        values |= {"w2": values["w2"][:, keep], "b2": values["b2"][keep]}
        values |= {name: constants_of(second.model)[name] for name in ("w3", "b3")}
    else:
        values = {}
        for layer, result in enumerate((first, second, *third), start=1):
            values |= {name: constants_of(result.model)[name] for name in (f"w{layer}", f"b{layer}")}
    apart = ModelProto()
    apart.CopyFrom(together)
    for tensor in apart.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    y = run(net, x=x)[0]
    assert loss(run(together, x=x)[0], y) < 0.96 * loss(run(apart, x=x)[0], y)


# The same function in other words


def plain(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes = [
        *(node("Gemm", "x w1 b1", "h1", "fc1"), node("Tanh", "h1", "a1")),
        *(node("Gemm", "a1 w2 b2", "h2", "fc2"), node("Tanh", "h2", "a2")),
        node("Gemm", "a2 w3 b3", "y", "fc3"),
    ]
    return nodes, dict(c)


def with_alpha_and_beta(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes, _ = plain(c)
    halves = [n for n in nodes if n.op_type == "Gemm"]
    for each, alpha, beta in zip(halves, (0.5, -2.0, 4.0), (2.0, -0.25, 0.5), strict=True):
        each.attribute.extend([helper.make_attribute("alpha", alpha), helper.make_attribute("beta", beta)])
    factors = {"w1": 2.0, "w2": -0.5, "w3": 0.25, "b1": 0.5, "b2": -4.0, "b3": 2.0}
    return nodes, {name: array * factors[name] for name, array in c.items()}


def with_trans_b(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes, _ = plain(c)
    for each in nodes:
        if each.op_type == "Gemm":
            each.attribute.append(helper.make_attribute("transB", 1))
    return nodes, {name: array.T.copy() for name, array in c.items()}


def with_matmul_and_add(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes = [
        *(node("MatMul", "x w1", "m1", "fc1"), node("Add", "b1 m1", "h1"), node("Tanh", "h1", "a1")),
        *(node("MatMul", "a1 w2", "m2", "fc2"), node("Add", "m2 b2", "h2"), node("Tanh", "h2", "a2")),
        *(node("MatMul", "a2 w3", "m3", "fc3"), node("Add", "m3 b3", "y")),
    ]
    return nodes, {**c, "b2": c["b2"][None]}


def with_sub_of_bias(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes = [
        *(node("MatMul", "x w1", "m1", "fc1"), node("Sub", "m1 b1", "h1"), node("Tanh", "h1", "a1")),
        *(node("MatMul", "a1 w2", "m2", "fc2"), node("Sub", "m2 b2", "h2"), node("Tanh", "h2", "a2")),
        *(node("MatMul", "a2 w3", "m3", "fc3"), node("Sub", "m3 b3", "y")),
    ]
    return nodes, {name: -array if name[0] == "b" else array for name, array in c.items()}


def with_sub_from_bias(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes = [
        *(node("MatMul", "x w1", "m1", "fc1"), node("Sub", "b1 m1", "h1"), node("Tanh", "h1", "a1")),
        *(node("MatMul", "a1 w2", "m2", "fc2"), node("Sub", "b2 m2", "h2"), node("Tanh", "h2", "a2")),
        *(node("MatMul", "a2 w3", "m3", "fc3"), node("Sub", "b3 m3", "y")),
    ]
    return nodes, {name: -array if name[0] == "w" else array for name, array in c.items()}


def with_gemm_and_later_add(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes = [
        *(node("Gemm", "x w1", "m1", "fc1"), node("Add", "m1 b1", "h1"), node("Tanh", "h1", "a1")),
        *(node("Gemm", "a1 w2", "m2", "fc2"), node("Add", "m2 b2", "h2"), node("Tanh", "h2", "a2")),
        *(node("Gemm", "a2 w3", "m3", "fc3"), node("Add", "m3 b3", "y")),
    ]
    return nodes, dict(c)


def with_constant_nodes(c: Mapping[str, Matrix]) -> tuple[list[Any], dict[str, Array]]:
    nodes, _ = plain(c)
    made = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a)) for name, a in c.items()]
    return [*made, *nodes], {}


Variant = Callable[[Mapping[str, Matrix]], tuple[list[Any], dict[str, Array]]]
VARIANTS: list[Variant] = [
    with_alpha_and_beta,
    with_trans_b,
    with_matmul_and_add,
    with_sub_of_bias,
    with_sub_from_bias,
    with_gemm_and_later_add,
    with_constant_nodes,
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
@UNITS
def test_same_function_in_other_operators_is_pruned_alike(
    variant: Variant, refit: str, unit: str, net: ModelProto, x: Array
) -> None:
    model = model_of(*variant(drawn(WIDTHS)), {"x": ["N", 6]}, {"y": ["N", 4]})
    test = rows(100, 6, 5)
    np.testing.assert_allclose(run(model, x=test)[0], run(net, x=test)[0], rtol=0, atol=1e-12)
    expected, found = (prune(m, {"x": x}, unit=unit, refit=refit) for m in (net, model))
    np.testing.assert_allclose(run(found.model, x=test)[0], run(expected.model, x=test)[0], rtol=0, atol=1e-8)
    for one, other in zip(found.report["layers"], expected.report["layers"], strict=True):
        assert one["name"] == other["name"]
        assert one["keep"] == other["keep"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def without_biases(kind: str) -> ModelProto:
    """Three dense nodes and two Tanh, no bias anywhere."""
    constants = {name: array for name, array in drawn(WIDTHS).items() if name[0] == "w"}
    nodes = [
        *(node(kind, "x w1", "h1", "fc1"), node("Tanh", "h1", "a1")),
        *(node(kind, "a1 w2", "h2", "fc2"), node("Tanh", "h2", "a2")),
        node(kind, "a2 w3", "y", "fc3"),
    ]
    return model_of(nodes, constants, {"x": ["N", 6]}, {"y": ["N", 4]})


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@UNITS
def test_missing_biases_are_created_and_sliced_where_their_layer_is_pruned(kind: str, unit: str) -> None:
    calib, test = rows(300, 6) + 0.5, rows(100, 6, 5)
    weights = drawn(WIDTHS)
    zeros = mlp(WIDTHS, {name: array * (name[0] == "w") for name, array in weights.items()})
    expected = prune(zeros, {"x": calib}, unit=unit)
    found = prune(without_biases(kind), {"x": calib}, unit=unit)
    np.testing.assert_allclose(run(found.model, x=test)[0], run(expected.model, x=test)[0], rtol=0, atol=1e-8)
    created = {name: array.shape for name, array in constants_of(found.model).items() if name[0] != "w" or "b" in name}
    if unit == "neuron":
        assert created == {"w2_bias": (8,), "w3_bias": (4,)}
    else:
        assert created == {"w1_bias": (20,), "w2_bias": (16,), "w3_bias": (4,)}


@pytest.mark.parametrize("refit", ["linear", "none"])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_no_bias_is_created_without_an_intercept(kind: str, refit: str) -> None:
    result = prune(without_biases(kind), {"x": rows(100, 6)}, refit=refit)
    assert constants_of(result.model).keys() == {"w1", "w2", "w3"}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("kind", ["Gemm", "Add", "Sub"])
@UNITS
def test_bias_of_one_entry_for_all_outputs_is_spread(shape: tuple[int, ...], kind: str, unit: str) -> None:
    constants = {**drawn(WIDTHS), "b2": np.full(shape, 0.3 if kind != "Sub" else -0.3)}
    nodes, _ = plain(constants)
    if kind != "Gemm":
        nodes[2:3] = [node("MatMul", "a1 w2", "m2", "fc2"), node(kind, "m2 b2", "h2")]
    model = model_of(nodes, constants, {"x": ["N", 6]}, {"y": ["N", 4]})
    same = mlp(WIDTHS, {**constants, "b2": np.full(16, 0.3)})
    calib, test = rows(300, 6), rows(100, 6, 5)
    found, expected = (run(prune(m, {"x": calib}, unit=unit).model, x=test)[0] for m in (model, same))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("constant", ["node", "initializer"])
@UNITS
def test_one_scalar_bias_that_several_layers_share_becomes_one_for_each(constant: str, unit: str) -> None:
    """Both readers of the scalar get a bias of their own, so that a Constant node vanishes: fc1, fc4 have no bias."""
    widths = (6, 20, 16, 12, 4)
    weights = {name: array for name, array in drawn(widths).items() if name[0] == "w"}
    scalar = np.array(0.3)
    nodes = [
        *(node("Gemm", "x w1", "h1", "fc1"), node("Tanh", "h1", "a1")),
        *(node("Gemm", "a1 w2 s", "h2", "fc2"), node("Tanh", "h2", "a2")),
        *(node("Gemm", "a2 w3 s", "h3", "fc3"), node("Tanh", "h3", "a3")),
        node("MatMul", "a3 w4", "y", "fc4"),
    ]
    constants = dict(weights)
    if constant == "node":
        nodes.insert(0, helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(scalar)))
    else:
        constants["s"] = scalar
    model = model_of(nodes, constants, {"x": ["N", 6]}, {"y": ["N", 4]})
    biases = {f"b{i}": np.full(m, 0.3 if i in (2, 3) else 0.0) for i, m in enumerate(widths[1:], 1)}
    same = mlp(widths, {**weights, **biases})
    calib, test = rows(300, 6), rows(100, 6, 5)
    found, expected = (run(prune(m, {"x": calib}, unit=unit).model, x=test)[0] for m in (model, same))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@UNITS
def test_gemm_whose_third_input_is_no_constant_gets_a_bias_behind_it(unit: str) -> None:
    """Gemm fc1 -> Tanh -> Gemm fc2 that adds 0.5 times the graph input z."""
    constants = drawn((6, 20, 4))
    nodes = [
        *(node("Gemm", "x w1 b1", "h", "fc1"), node("Tanh", "h", "a")),
        node("Gemm", "a w2 z", "y", "fc2", beta=0.5),
    ]
    model = model_of(nodes, constants, {"x": ["N", 6], "z": ["N", 4]}, {"y": ["N", 4]})
    same = mlp((6, 20, 4), {**constants, "b2": np.zeros(4)})
    calib, test, z = rows(300, 6), rows(100, 6, 5), rows(100, 4, 6)
    found = run(prune(model, {"x": calib, "z": rows(300, 4)}, unit=unit).model, x=test, z=z)[0]
    expected = run(prune(same, {"x": calib}, unit=unit).model, x=test)[0] + 0.5 * z
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


# Several consumers


def two_heads(*, different: bool) -> ModelProto:
    """Gemm fc1 20 -> Tanh, read by the MatMuls head1 (4) and head2 (3); with `different`, head2 reads its Sigmoid."""
    c = drawn((6, 20, 4))
    constants = {"w1": c["w1"], "b1": c["b1"], "u": c["w2"], "v": drawn((20, 3), 9)["w1"], "c": np.arange(3.0)}
    nodes = [
        *(node("Gemm", "x w1 b1", "h", "fc1"), node("Tanh", "h", "a")),
        *([node("Sigmoid", "h", "s")] if different else []),
        node("MatMul", "a u", "y1", "head1"),
        *(node("MatMul", "s v" if different else "a v", "m", "head2"), node("Add", "m c", "y2")),
    ]
    return model_of(nodes, constants, {"x": ["N", 6]}, {"y1": ["N", 4], "y2": ["N", 3]})


@pytest.mark.parametrize("different", [False, True], ids=["one tap", "two taps"])
@pytest.mark.parametrize("method", ["dpp", "importance", "random", "dpp-sample"])
@FORMS
def test_each_of_several_consumers_is_refitted(different: bool, method: str, refit: str, x: Array) -> None:
    model = two_heads(different=different)
    result = prune(model, {"x": x}, method=method, refit=refit, keep=0.4)
    (layer,) = result.report["layers"]
    keep = layer["keep"]
    assert len(keep) == 8
    old, new = constants_of(model), constants_of(result.model)
    np.testing.assert_array_equal(new["w1"], old["w1"][:, keep])
    hidden = np.tanh(x @ old["w1"] + old["b1"])
    other = 1 / (1 + np.exp(-(x @ old["w1"] + old["b1"]))) if different else hidden
    for value, name in ((hidden, "u"), (other, "v")):
        weights, _ = solved(value[:, keep], value @ old[name], old[name][keep], refit)
        np.testing.assert_allclose(new[name], weights, rtol=0, atol=1e-5 * np.abs(weights).max())
    before, after = (np.hstack(run(m, x=x)) for m in (model, result.model))
    assert layer["loss"] == pytest.approx(loss(after, before), rel=1e-4)


@pytest.mark.parametrize("different", [False, True], ids=["one tap", "two taps"])
def test_importance_is_that_of_all_consumers_together(different: bool, x: Array) -> None:
    model = two_heads(different=different)
    old = constants_of(model)
    score = np.abs(np.hstack([old["u"], old["v"]])).mean(1)
    result = prune(model, {"x": x}, method="importance", keep=0.25)
    assert result.report["layers"][0]["keep"] == sorted(np.argsort(-score)[:5].tolist())


# What the report says


@UNITS
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
def test_loss_of_the_last_layer_is_measured_by_running_both_models(
    unit: str, refit: str, net: ModelProto, x: Array
) -> None:
    result = prune(net, {"x": x}, unit=unit, refit=refit)
    before, after = run(net, x=x)[0], run(result.model, x=x)[0]
    assert result.report["layers"][-1]["loss"] == pytest.approx(loss(after, before), rel=1e-6)
    found = result.report["discrepancy"]["y"]
    assert found["relative_l2"] == pytest.approx(relative(after, before), rel=1e-9)
    assert found["max_abs"] == pytest.approx(np.abs(after - before).max(), rel=1e-9)


@UNITS
@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_loss_of_one_layer_is_measured_at_its_consumer(unit: str, name: str, net: ModelProto, x: Array) -> None:
    result = prune(net, {"x": x}, unit=unit, layers=[name], method="dpp")
    tap = {"neuron": {"fc1": "h2", "fc2": "y"}, "edge": {"fc1": "h1", "fc2": "h2"}}[unit][name]
    before, after = (run(model, tap, x=x)[0] for model in (net, result.model))
    (layer,) = result.report["layers"]
    assert layer["loss"] == pytest.approx(loss(after, before), rel=1e-6)
    # and before the refit: the same choice, as a model that was not refitted has it
    bare = prune(net, {"x": x}, unit=unit, layers=[name], refit="none")
    assert layer["loss_before_refit"] == pytest.approx(loss(run(bare.model, tap, x=x)[0], before), rel=1e-6)
    assert bare.report["layers"][0]["loss"] == bare.report["layers"][0]["loss_before_refit"]


def test_pruned_neurons_are_those_of_the_report(net: ModelProto, x: Array) -> None:
    result = prune(net, {"x": x}, refit="none", keep=0.3)
    first, second = (layer["keep"] for layer in result.report["layers"])
    old, new = constants_of(net), constants_of(result.model)
    np.testing.assert_array_equal(new["w1"], old["w1"][:, first])
    np.testing.assert_array_equal(new["b1"], old["b1"][first])
    np.testing.assert_array_equal(new["w2"], old["w2"][np.ix_(first, second)])
    np.testing.assert_array_equal(new["w3"], old["w3"][second])
    assert [layer["width"] for layer in result.report["layers"]] == [20, 16]
    assert [layer["kept"] for layer in result.report["layers"]] == [6, 5] == [len(first), len(second)]


@pytest.mark.parametrize("method", ["dpp", "dpp-sample", "importance", "random"])
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
def test_edges_leave_exactly_k_nonzeros_per_output(method: str, refit: str, net: ModelProto, x: Array) -> None:
    result = prune(net, {"x": x}, unit="edge", keep=0.3, method=method, refit=refit)
    new = constants_of(result.model)
    for name, k in (("w1", 2), ("w2", 6), ("w3", 5)):  # of 6, 20 and 16
        assert (np.count_nonzero(new[name], axis=0) == k).all()
    assert [layer["kept"] for layer in result.report["layers"]] == [2, 6, 5]
    assert all(layer["keep"] is None for layer in result.report["layers"])
    dropped = sum((n - k) * m for n, k, m in ((6, 2, 20), (20, 6, 16), (16, 5, 4)))
    sizes = result.report["model"]
    assert sizes["after"]["parameters"] == sizes["before"]["parameters"]
    assert sizes["after"]["nonzero"] == sizes["before"]["nonzero"] - dropped


def test_sizes_of_the_report_are_counted_by_hand(net: ModelProto, x: Array) -> None:
    before, after = (prune(net, {"x": x}).report["model"][when] for when in ("before", "after"))
    assert before["macs"] == 6 * 20 + 20 * 16 + 16 * 4
    assert before["parameters"] == before["macs"] + 20 + 16 + 4
    assert after["macs"] == 6 * 10 + 10 * 8 + 8 * 4
    assert after["parameters"] == after["macs"] + 10 + 8 + 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit": "edge"},
        {"method": "importance", "refit": "none"},
        {"method": "dpp-sample", "kernel": "linear", "refit": "linear"},
        {"method": "random", "beta": 10.0, "seed": 2**64 - 1},
        {"layers": ["fc1=0.3"], "skip": ["fc2"], "max_rows": 10, "batch_size": 3, "round_to": 4},
    ],
    ids=str,
)
def test_report_is_as_the_schema_says(options: dict[str, Any], net: ModelProto, x: Array) -> None:
    report = prune(net, {"x": x}, **options).report
    Draft202012Validator.check_schema(schema("report"))
    Draft202012Validator(schema("report")).validate(json.loads(to_json(report)))
    assert json.loads(to_json(report)) == report


def test_report_of_random_data_and_integer_outputs_is_as_the_schema_says() -> None:
    """Gemm -> Relu -> Gemm -> ArgMax, an integer output."""
    model = mlp((6, 20, 4), drawn((6, 20, 4)))
    model.graph.node.append(node("ArgMax", "y", "label", axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
    report = prune(model, "random:64").report
    Draft202012Validator(schema("report")).validate(json.loads(to_json(report)))
    assert report["discrepancy"]["label"]["agreement"] <= 1


def test_report_names_the_options_and_the_rows(net: ModelProto, x: Array) -> None:
    report = prune(net, {"x": x}, seed=7, max_rows=100).report
    assert report["seed"] == 7
    assert report["rows"] == 100
    assert report["provider"] == "cpu"
    assert report["options"]["keep"] == 0.5
    assert report["options"]["beta"] == "auto"
    assert report["random_data"] is False
    assert report["notices"] == []


def test_seed_decides_what_is_drawn(net: ModelProto, x: Array) -> None:
    def keeps(seed: int) -> Any:
        return [layer["keep"] for layer in prune(net, {"x": x}, method="random", seed=seed).report["layers"]]

    assert keeps(1) == keeps(1)
    assert keeps(1) != keeps(2)


def test_layers_draw_the_same_whatever_else_is_pruned(net: ModelProto, x: Array) -> None:
    together = prune(net, {"x": x}, method="random").report["layers"][1]["keep"]
    alone = prune(net, {"x": x}, method="random", layers=["fc2"]).report["layers"][0]["keep"]
    assert together == alone


def test_shapes_that_no_longer_hold_are_dropped(net: ModelProto, x: Array) -> None:
    """Shape inference has written down every hidden value; those of fc2 are left as they are."""
    told = onnx.shape_inference.infer_shapes(net, strict_mode=True)
    assert {value.name for value in told.graph.value_info} == {"h1", "a1", "h2", "a2"}
    result = prune(told, {"x": x}, layers=["fc1"])
    assert {value.name for value in result.model.graph.value_info} == {"h2", "a2"}
    onnx.checker.check_model(result.model, full_check=True)
    edges = prune(told, {"x": x}, unit="edge")
    assert edges.model.graph.value_info == told.graph.value_info


# Which layers, and how many of each


def kept(result: onnxdpp.PruneResult) -> dict[str, int]:
    return {layer["name"]: layer["kept"] for layer in result.report["layers"]}


def reasons(result: onnxdpp.PruneResult) -> dict[str, str]:
    return {refusal["name"]: refusal["reason"] for refusal in result.report["refusals"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"fc1": 10, "fc2": 8}),
        ({"layers": ["fc1"]}, {"fc1": 10}),
        ({"layers": ["fc*"]}, {"fc1": 10, "fc2": 8}),
        ({"layers": ["fc1=0.25"]}, {"fc1": 5}),
        ({"layers": ["fc1=0.25", "fc2"]}, {"fc1": 5, "fc2": 8}),
        ({"layers": ["fc1=0.25", "fc*=0.75"]}, {"fc1": 15, "fc2": 12}),
        ({"layers": ["fc*=0.75", "fc1=0.25"]}, {"fc1": 5, "fc2": 12}),
        ({"layers": ["fc1=0.25", "*"]}, {"fc1": 10, "fc2": 8}),
        ({"layers": ["fc[2-9]"]}, {"fc2": 8}),
        ({"skip": ["fc1"]}, {"fc2": 8}),
        ({"skip": ["*1"], "layers": ["fc*=0.25"]}, {"fc2": 4}),
        ({"keep": 0.001}, {"fc1": 1, "fc2": 1}),
        ({"keep": 0.7}, {"fc1": 14, "fc2": 11}),
        ({"round_to": 4, "keep": 0.1}, {"fc1": 4, "fc2": 4}),
        ({"round_to": 4, "keep": 0.35}, {"fc1": 8, "fc2": 8}),
        ({"round_to": 8, "keep": 0.7}, {"fc1": 16, "fc2": 8}),
        ({"round_to": 64}, {"fc1": 20, "fc2": 16}),
    ],
    ids=str,
)
def test_kept_counts_follow_keep_layers_skip_and_round_to(
    options: dict[str, Any], expected: dict[str, int], net: ModelProto, x: Array
) -> None:
    result = prune(net, {"x": x}, **options)
    assert kept(result) == expected
    shapes = {name: array.shape for name, array in constants_of(result.model).items()}
    fc1, fc2 = expected.get("fc1", 20), expected.get("fc2", 16)
    assert shapes["w1"] == (6, fc1)
    assert shapes["w2"] == (fc1, fc2)
    assert shapes["w3"] == (fc2, 4)


def test_layers_that_are_left_alone_are_refusals_with_the_reason(net: ModelProto, x: Array) -> None:
    assert "--skip fc1" in reasons(prune(net, {"x": x}, skip=["fc1"]))["fc1"]
    assert "--layer" in reasons(prune(net, {"x": x}, layers=["fc2"]))["fc1"]
    assert "graph output" in reasons(prune(net, {"x": x}))["fc3"]


@pytest.mark.parametrize("pattern", ["FC1", "fc9", "fc", "", "h1"])
@pytest.mark.parametrize("option", ["layers", "skip"])
def test_pattern_that_matches_nothing_is_a_usage_error(option: str, pattern: str, net: ModelProto, x: Array) -> None:
    with pytest.raises(UsageError, match="matches no layer"):
        prune(net, {"x": x}, **{option: [pattern]})


def test_skipping_everything_leaves_nothing_to_prune(net: ModelProto, x: Array) -> None:
    with pytest.raises(NothingToPrune) as caught:
        prune(net, {"x": x}, skip=["fc*"])
    assert {name for name, _ in caught.value.refusals} == {"fc1", "fc2", "fc3"}


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.0},
        {"keep": 1.5},
        {"keep": float("nan")},
        {"unit": "filter"},
        {"method": "magnitude"},
        {"kernel": "cosine"},
        {"refit": "ridge"},
        {"provider": "tpu"},
        {"beta": 0.0},
        {"beta": float("inf")},
        {"epsilon": -1.0},
        {"round_to": 0},
        {"batch_size": 0},
        {"max_rows": 0},
        {"seed": -1},
        {"layers": ["fc1=lots"]},
        {"layers": ["fc1=2"]},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_usage_errors(options: dict[str, Any], net: ModelProto, x: Array) -> None:
    with pytest.raises(UsageError) as caught:
        prune(net, {"x": x}, **options)
    assert str(caught.value).isprintable()


# Notices


def test_few_rows_are_noticed(net: ModelProto) -> None:
    (notice,) = prune(net, {"x": rows(19, 6)}, sensitivity=False).report["notices"]
    assert "19 observations are few for the refit of 1 layers (of 'fc1', 10 inputs stay)" in notice
    assert prune(net, {"x": rows(20, 6)}, sensitivity=False).report["notices"] == []


def test_few_rows_do_not_matter_without_a_refit(net: ModelProto) -> None:
    assert prune(net, {"x": rows(5, 6)}, refit="none").report["notices"] == []


def test_random_data_are_noticed(net: ModelProto) -> None:
    report = prune(net, "random:64").report
    assert report["random_data"] is True
    assert report["rows"] == 64
    assert any("random" in notice for notice in report["notices"])


@UNITS
@pytest.mark.parametrize("value", [0.0, 0.3, 1000.0])
def test_equal_rows_are_noticed_and_answered_right(unit: str, value: float) -> None:
    """Relu, so that no neuron saturates: all are constant, most of them not zero."""
    model = mlp(WIDTHS, drawn(WIDTHS), "Relu")
    calib = np.full((500, 6), value)
    result = prune(model, {"x": calib}, unit=unit)
    assert any("all rows are equal" in notice for notice in result.report["notices"])
    assert relative(run(result.model, x=calib)[0], run(model, x=calib)[0]) < 1e-9
    assert [layer["loss"] for layer in result.report["layers"]] == [0.0] * len(result.report["layers"])
    old, new = constants_of(model), constants_of(result.model)
    if unit == "neuron":
        first, second = (layer["keep"] for layer in result.report["layers"])
        np.testing.assert_array_equal(new["w2"], old["w2"][np.ix_(first, second)])


def test_loss_is_null_where_answers_do_not_vary_but_err(net: ModelProto) -> None:
    report = prune(net, {"x": np.full((50, 6), 0.3)}, refit="none").report
    assert [layer["loss"] for layer in report["layers"]] == [None, None]
    Draft202012Validator(schema("report")).validate(json.loads(to_json(report)))


# The same data and models in other forms


def folder_of(path: Path, x: Array) -> Path:
    path.mkdir()
    for part, start in enumerate(range(0, len(x), 70)):
        np.save(path / f"{part:03}.npy", x[start : start + 70])
    return path


CALIBRATIONS: dict[str, Callable[[Path, Array], Any]] = {
    "npz": lambda folder, x: np.savez(folder / "c.npz", x=x) or folder / "c.npz",
    "compressed npz": lambda folder, x: np.savez_compressed(folder / "c.npz", x=x) or folder / "c.npz",
    "npy": lambda folder, x: np.save(folder / "c.npy", x) or str(folder / "c.npy"),
    "folder": lambda folder, x: folder_of(folder / "parts", x),
    "list of dicts": lambda folder, x: [{"x": x[:100]}, {"x": x[100:]}],
    "generator of dicts": lambda folder, x: ({"x": x[i : i + 50]} for i in range(0, len(x), 50)),
}


@pytest.mark.parametrize("form", CALIBRATIONS)
@UNITS
def test_calibration_data_in_any_form_give_the_same_bytes(
    form: str, unit: str, net: ModelProto, x: Array, tmp_path: Path
) -> None:
    expected = prune(net, {"x": x}, unit=unit)
    found = prune(net, CALIBRATIONS[form](tmp_path, x), unit=unit)
    assert found.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)
    assert without_seconds(found.report) == without_seconds(expected.report)


@UNITS
def test_model_as_path_and_as_proto_give_the_same_bytes(unit: str, net: ModelProto, x: Array, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net, path)
    results = [prune(model, {"x": x}, unit=unit) for model in (net, path, str(path), onnx.load(path))]
    assert len({result.model.SerializeToString(deterministic=True) for result in results}) == 1
    first, *others = (without_seconds(result.report) for result in results)
    for other in others:
        assert {**other, "model": None} == {**first, "model": None}
        assert other["model"]["after"] == first["model"]["after"]


@UNITS
@pytest.mark.parametrize("refit", ["affine", "linear", "none"])
def test_neither_model_nor_data_are_changed(unit: str, refit: str, x: Array) -> None:
    model, calib = without_biases("MatMul"), x.copy()
    before = model.SerializeToString(deterministic=True)
    prune(model, {"x": calib}, unit=unit, refit=refit)
    assert model.SerializeToString(deterministic=True) == before
    assert calib.tobytes() == x.tobytes()


@UNITS
@pytest.mark.parametrize("batch_size", [1, 7, 300, 1000])
def test_batches_change_the_weights_by_rounding_only(unit: str, batch_size: int, net: ModelProto, x: Array) -> None:
    expected, found = (prune(net, {"x": x}, unit=unit, batch_size=size) for size in (64, batch_size))
    for name, array in constants_of(expected.model).items():
        np.testing.assert_allclose(constants_of(found.model)[name], array, rtol=0, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
@UNITS
def test_number_of_cores_does_not_change_a_bit(
    unit: str, count: int, net: ModelProto, x: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prune(net, {"x": x}, unit=unit, method="dpp-sample")
    monkeypatch.setattr("onnxdpp.pruning.cores", lambda: count)
    found = prune(net, {"x": x}, unit=unit, method="dpp-sample")
    assert found.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)
    assert without_seconds(found.report) == without_seconds(expected.report)


def test_max_rows_are_evenly_spaced(net: ModelProto, x: Array) -> None:
    found = prune(net, {"x": x}, max_rows=90)
    expected = prune(net, {"x": x[np.arange(90) * 300 // 90]})
    assert found.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)


# Types and ranks


@UNITS
@FORMS
def test_float16_model_is_pruned_in_its_own_type(unit: str, refit: str) -> None:
    model = mlp(WIDTHS, drawn(WIDTHS), dtype=np.float16)
    calib = rows(300, 6, dtype=np.float16)
    result = prune(model, {"x": calib}, unit=unit, refit=refit, keep=0.75)
    assert {array.dtype for array in constants_of(result.model).values()} == {np.dtype(np.float16)}
    before, after = (run(m, x=calib)[0].astype(np.float64) for m in (model, result.model))
    assert result.report["layers"][-1]["loss"] == pytest.approx(loss(after, before), rel=0.05)
    wide = prune(mlp(WIDTHS, drawn(WIDTHS)), {"x": calib.astype(np.float64)}, unit=unit, refit=refit, keep=0.75)
    last = wide.report["layers"][-1]["loss"]
    assert result.report["layers"][-1]["loss"] == pytest.approx(last, rel=0.1)


@UNITS
def test_every_position_of_a_sequence_is_an_observation(unit: str) -> None:
    """MatMul -> Add -> Tanh -> MatMul -> Add on (N, 5, 6) is pruned as on its (5 N, 6) rows."""
    constants = drawn((6, 20, 4))
    nodes = [
        *(node("MatMul", "x w1", "m1", "fc1"), node("Add", "m1 b1", "h1"), node("Tanh", "h1", "a1")),
        *(node("MatMul", "a1 w2", "m2", "fc2"), node("Add", "m2 b2", "y")),
    ]
    deep = model_of(nodes, constants, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]})
    flat = mlp((6, 20, 4), constants)
    calib = rows(200, 6)
    found = prune(deep, {"x": calib.reshape(40, 5, 6)}, unit=unit, method="dpp")
    expected = prune(flat, {"x": calib}, unit=unit, method="dpp")
    assert found.report["rows"] == 40
    for name, array in constants_of(expected.model).items():
        np.testing.assert_allclose(constants_of(found.model)[name], array, rtol=0, atol=1e-7, err_msg=name)
    assert found.report["model"]["after"]["macs"] == 5 * expected.report["model"]["after"]["macs"]
    # observations count, not rows of the file
    assert prune(deep, {"x": calib[:60].reshape(12, 5, 6)}).report["notices"] == []


def test_duplicated_neurons_cost_nothing() -> None:
    """Every neuron of fc1 stands there twice; half of them stay."""
    constants = drawn((6, 10, 4))
    twice = {
        "w1": np.repeat(constants["w1"], 2, axis=1), "b1": np.repeat(constants["b1"], 2),
        "w2": np.repeat(constants["w2"], 2, axis=0) / 2, "b2": constants["b2"],
    }  # fmt: skip
    calib, test = rows(300, 6), rows(100, 6, 5)
    result = prune(mlp((6, 20, 4), twice), {"x": calib})
    (layer,) = result.report["layers"]
    assert sorted(index // 2 for index in layer["keep"]) == list(range(10))
    assert layer["loss"] < 1e-5
    expected = run(mlp((6, 10, 4), constants), x=test)[0]
    assert relative(run(result.model, x=test)[0], expected) < 1e-5


def test_rescaled_activations_are_pruned_alike() -> None:
    """Relu passes a positive factor on: fc1 times 1000, fc2 by 1000."""
    constants = drawn((6, 20, 4))
    scaled = {**constants, "w1": 1000 * constants["w1"], "b1": 1000 * constants["b1"], "w2": constants["w2"] / 1000}
    first, second = (prune(mlp((6, 20, 4), c, "Relu"), {"x": rows(300, 6)}) for c in (constants, scaled))
    assert first.report["layers"][0]["keep"] == second.report["layers"][0]["keep"]
    test = rows(100, 6, 5)
    assert relative(run(second.model, x=test)[0], run(first.model, x=test)[0]) < 1e-9


def test_result_is_saved_as_it_is(net: ModelProto, x: Array, tmp_path: Path) -> None:
    result = prune(net, {"x": x})
    path = tmp_path / "small.onnx"
    result.save(path)
    assert onnx.load(path) == result.model
    assert path.stat().st_size == result.report["model"]["after"]["bytes"]
    with pytest.raises(OnnxdppError, match=r"small\.onnx"):
        result.save(path)
    result.save(path, force=True)


def test_progress_is_told_for_each_layer_and_ends_at_one(net: ModelProto, x: Array) -> None:
    told: dict[str, list[float]] = {}
    prune(net, {"x": x}, batch_size=50, polish=1, progress=lambda text, part: told.setdefault(text, []).append(part))
    assert {"fc1", "fc2", "whole runs", "polish"} <= told.keys()
    for parts in told.values():
        assert parts == sorted(parts)
        assert parts[-1] == 1


# Memory

PEAK = """
import sys
import onnxdpp
model, calib, unit = sys.argv[1:]
onnxdpp.prune(model, calib, keep=0.5, unit=unit, provider="cpu")
# not ru_maxrss, which begins at the parent's
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak there")
@UNITS
def test_peak_memory_does_not_grow_with_rows(unit: str, tmp_path: Path) -> None:
    """The second layer is paired: blocks of both models, at 12,000 and 30,000 rows of 2 kB.

    Of the fewer, as many are held out as candidates are judged on at most.
    """
    widths = (512, 64, 64, 8)
    onnx.save(mlp(widths, drawn(widths), dtype=np.float32), tmp_path / "net.onnx")
    many = rows(30_000, 512, dtype=np.float32)
    peaks = []
    for x in (many[:12_000], many):
        np.savez(tmp_path / "calib.npz", x=x)
        command = [sys.executable, "-c", PEAK, str(tmp_path / "net.onnx"), str(tmp_path / "calib.npz"), unit]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 8e6  # of 37 MB more data


def test_gemm_of_beta_zero_and_a_computed_bias_is_refused_once() -> None:
    """The affine refit prepares biases first: what it finds afterwards must be what the report says."""
    proto = model(
        """g (float[N, 6] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, W1, B1)   p = Relu(a)
            c = ReduceMean<axes=[1]>(x)   [fc2] b = Gemm<beta=0.0>(p, W2, c)   q = Relu(b)
            [fc3] y = Gemm(q, W3, B3)
        }""",
        W1=(6, 8),
        B1=(8,),
        W2=(8, 7),
        W3=(7, 3),
        B3=(3,),
    )
    report = prune(proto, {"x": rows(200, 6)}).report
    assert [layer["name"] for layer in report["layers"]] == ["fc1"]
    assert "fc2" in {entry["name"] for entry in report["refusals"]}


def test_lone_pattern_is_one_pattern(net: ModelProto) -> None:
    report = prune(net, {"x": rows(200, 6)}, layers="fc1").report
    assert [layer["name"] for layer in report["layers"]] == ["fc1"]


def test_graph_without_weight_layers_is_said_to_have_none() -> None:
    with pytest.raises(NothingToPrune, match=r"^Nothing can be pruned: its graph has no Gemm, MatMul or Conv\.$"):
        prune(model("g (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }"), {"x": rows(20, 6)})


def test_iterable_that_hands_out_one_buffer_again_and_again(net: ModelProto, x: Array) -> None:
    class Reader:
        def __iter__(self) -> Iterator[dict[str, Array]]:
            buffer = np.empty_like(x[:10])
            for first in range(0, len(x) - 9, 10):
                buffer[:] = x[first : first + 10]
                yield {"x": buffer}

    whole = x[: len(x) // 10 * 10]
    assert prune(net, Reader()).model == prune(net, {"x": whole}).model


# Outputs that depend on the data in number

DETECTOR = """g (float[N, 6] x) => (float[N, 3] y, float[K, 2] found, float[L, 2] none) {
    [fc1] a = Gemm(x, w1, b1)  h = Relu(a)  [fc2] y = Gemm(h, w2, b2)
    hot = Greater(y, low)  where = NonZero(hot)  rows = Transpose(where)  found = Cast <to = 1> (rows)
    hotter = Greater(y, high)  there = NonZero(hotter)  lines = Transpose(there)  none = Cast <to = 1> (lines)
}"""


def detector(*outputs: str) -> ModelProto:
    """Scores, where they are above zero, and where they are above what they never are. Layers: fc1 (10)."""
    proto = model(
        DETECTOR, w1=(6, 10), b1=(10,), w2=(10, 3), b2=(3,), low=np.float32([0]), high=np.float32([1e9])
    )  # fmt: skip
    declared = {entry.name: entry for entry in proto.graph.output}
    chosen = [declared[name] for name in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(chosen)
    return proto


def test_outputs_whose_number_of_entries_changes_are_told_and_the_others_compared() -> None:
    result = prune(detector("found", "y"), {"x": rows(60, 6, dtype=np.float32)}, max_discrepancy=1.0, details=True)
    assert set(result.report["discrepancy"]) == {"y"}
    (notice,) = result.report["notices"]
    assert notice.startswith("Output 'found' has another number of entries in the pruned model for the same rows")
    assert result.report["gates"][0]["value"] == result.report["evaluation"]["discrepancy"]["y"]["relative_l2"]
    assert any(entry["sensitivity"] for entry in result.report["layers"][0]["contest"])
    assert "'y': how far rows move".replace("'", "") in result.html()


@pytest.mark.parametrize("outputs", [("none", "y"), ("y", "none")])
def test_outputs_without_an_entry_do_not_hide_the_others(outputs: Sequence[str]) -> None:
    report = prune(
        detector(*outputs), {"x": rows(60, 6)}, keep=None, target_discrepancy=0.5, max_discrepancy=0.6
    ).report
    assert set(report["discrepancy"]) == {"y"}
    told = "Output 'none' has nothing to compare on these rows: no finite entry, padding aside."
    assert [notice for notice in report["notices"] if "none" in notice] == [told]
    assert report["layers"][0]["kept"] < 10
    (gate,) = report["gates"]
    assert (gate["value"], gate["passed"]) == (report["evaluation"]["discrepancy"]["y"]["relative_l2"], True)
