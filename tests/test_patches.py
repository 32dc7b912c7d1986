"""Patches: rows times the effective matrix are what onnxruntime's convolutions give."""

from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import Array, constant, graph_of, model, normal, run
from onnx import ModelProto, helper, numpy_helper

from onnxdpp.graph.patches import Patch, patch_of
from onnxdpp.graph.projections import Projection, find_projections


def projection(proto: ModelProto) -> Projection:
    (part,), refusals = find_projections(graph_of(proto))
    assert not refusals
    return part


def convolution(operator: str, x: Array, weight: Array, **attributes: object) -> ModelProto:
    """One convolution of values shaped like `x`, without a bias."""
    dims = ", ".join(["N", *map(str, x.shape[1:])])
    out = ", ".join(f"Y{axis}" for axis in range(x.ndim))
    proto = model(f"g (double[{dims}] x) => (double[{out}] y) {{ [c] y = {operator}(x, W) }}", opset=11, W=weight)
    proto.graph.node[0].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return proto


def by_patches(part: Projection, x: Array, weight: Array) -> Array:
    """The whole output, from all patches of all groups."""
    assert part.patch is not None
    positions = part.patch.positions(x.shape[2:])
    count = prod(positions)
    row, position = np.repeat(np.arange(len(x)), count), np.tile(np.arange(count), len(x))
    matrix, width = part.effective(weight), x.shape[1] // part.groups
    outputs = [
        part.patch.rows(x[:, group * width : (group + 1) * width], row, position) @ matrix[:, part.group(group)]
        for group in range(part.groups)
    ]
    whole = np.concatenate(outputs, axis=1).reshape(len(x), *positions, part.m)
    return np.moveaxis(whole, -1, 1)


@st.composite
def settings_of_a_convolution(draw: st.DrawFn, operator: str) -> tuple[Array, Array, dict[str, object]]:
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    n, m = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, size = each(1, 3), each(3, 6)
    attributes: dict[str, object] = {"group": groups}
    for name, low, high in (("strides", 1, 3), ("dilations", 1, 2)):
        if draw(st.booleans()):
            attributes[name] = each(low, high)
    pads = draw(st.sampled_from(["none", "pads", "auto"]))
    if pads == "pads":
        attributes["pads"] = each(0, 2, 2 * rank)
    elif pads == "auto":
        kinds = (
            ["VALID", "SAME_UPPER", "SAME_LOWER"] if operator == "Conv" and "dilations" not in attributes else ["VALID"]
        )
        attributes["auto_pad"] = draw(st.sampled_from(kinds))
    if operator == "ConvTranspose" and "strides" in attributes and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in attributes["strides"]]
    shape = (m, n // groups) if operator == "Conv" else (n, m // groups)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return rng.standard_normal((2, n, *size)), rng.standard_normal((*shape, *kernel)), attributes


def assert_patches_give_it(operator: str, x: Array, weight: Array, attributes: dict[str, object]) -> None:
    """In float32, since onnxruntime has no others of all of these."""
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    proto = convolution(operator, x, weight, **attributes)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = 1
    try:
        expected = run(proto, {"x": x})[0]
    except Exception as error:
        assume("Invalid input shape" not in str(error) and "ARGUMENT" not in str(error))
        raise
    assume(expected.size)
    part = projection(proto)
    assert part.patch is not None
    assert part.patch.positions(x.shape[2:]) == expected.shape[2:]
    np.testing.assert_allclose(by_patches(part, x, weight), expected, rtol=0, atol=1e-4)


@settings(max_examples=150)
@given(settings_of_a_convolution("Conv"))
def test_patches_of_a_convolution(case: tuple[Array, Array, dict[str, object]]) -> None:
    assert_patches_give_it("Conv", *case)


@settings(max_examples=150)
@given(settings_of_a_convolution("ConvTranspose"))
def test_patches_of_a_transposed_convolution(case: tuple[Array, Array, dict[str, object]]) -> None:
    assert_patches_give_it("ConvTranspose", *case)


@settings(max_examples=60)
@given(st.sampled_from(["Conv", "ConvTranspose"]), st.data())
def test_stored_weights_invert_effective_ones(operator: str, data: st.DataObject) -> None:
    x, weight, attributes = data.draw(settings_of_a_convolution(operator))
    part = projection(convolution(operator, x, weight, **attributes))
    assert part.effective(weight).shape == (part.n, part.m)
    np.testing.assert_array_equal(part.stored(part.effective(weight)), weight)


@settings(max_examples=60)
@given(st.sampled_from(["Conv", "ConvTranspose"]), st.data())
def test_some_positions_are_those_among_all(operator: str, data: st.DataObject) -> None:
    x, weight, attributes = data.draw(settings_of_a_convolution(operator))
    patch = patch_of(helper.make_node(operator, ["x", "W"], ["y"], **attributes), weight.shape)
    assert isinstance(patch, Patch)
    count = prod(patch.positions(x.shape[2:]))
    assume(count)
    picks = np.array(data.draw(st.lists(st.integers(0, 2 * count - 1), min_size=1, max_size=9)))
    every = patch.rows(x, np.repeat([0, 1], count), np.tile(np.arange(count), 2))
    np.testing.assert_array_equal(patch.rows(x, picks // count, picks % count), every[picks])
    assert every.shape[1] == x.shape[1] * patch.size


def test_inputs_of_a_patch_are_channel_after_channel() -> None:
    x = np.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    patch = patch_of(helper.make_node("Conv", ["x", "W"], ["y"]), (5, 2, 2, 2))
    assert isinstance(patch, Patch)
    np.testing.assert_array_equal(patch.rows(x, np.array([0]), np.array([4])), [[5, 6, 9, 10, 17, 18, 21, 22]])


def test_edges_of_a_patch_are_zeros() -> None:
    x = np.ones((1, 1, 3))
    patch = patch_of(helper.make_node("Conv", ["x", "W"], ["y"], pads=[2, 1]), (1, 1, 3))
    assert isinstance(patch, Patch)
    rows = patch.rows(x, np.zeros(4, int), np.arange(4))
    np.testing.assert_array_equal(rows, [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize("attributes", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [9]}])
def test_transposed_convolution_to_a_given_shape_is_refused(attributes: dict[str, object]) -> None:
    proto = convolution("ConvTranspose", normal(1, 2, 4), normal(2, 3, 2).astype(np.float64), **attributes)
    assert find_projections(graph_of(proto))[1][0].reason == "its pads are computed from an output shape"


def test_weights_of_a_group_act_on_its_outputs_only() -> None:
    """A change of one column changes one output channel."""
    x, weight = normal(2, 4, 5), normal(6, 2, 3)
    proto = convolution("Conv", x, weight, group=2)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = 1
    part = projection(proto)
    before = run(proto, {"x": x})[0]
    matrix = part.effective(constant(proto, "W"))
    matrix[:, 4] += 1
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(part.stored(matrix).astype(np.float32), "W"))
    changed = np.abs(run(proto, {"x": x})[0] - before).max((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, False, False, True, False]
