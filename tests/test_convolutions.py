"""Convolutions as producers, followers and consumers; and what they are joined with in real networks."""

from typing import Any

import numpy as np
import onnx
import pytest
from models import Array, Weight, constant, graph_of, model, node, normal, run
from onnx import ModelProto, TensorProto
from oracles import assert_sound, dropped, gap, oracle_a, silenced

from onnxdpp.graph.layers import Layer, find_layers

SIZES = {1: (7,), 2: (6, 5), 3: (6, 5, 7)}


def found(proto: ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(graph_of(proto))[0]}


def refused(proto: ModelProto) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in find_layers(graph_of(proto))[1]}


def widths(proto: ModelProto) -> dict[str, int]:
    return {name: layer.n for name, layer in found(proto).items()}


def image(
    body: str, *, rank: int = 2, opset: int = 17, channels: int = 3, out: int | None = None, **weights: Weight
) -> ModelProto:
    """`body` from x (N, channels, *size) to y, of `out` axes."""
    lead = ", ".join(["N", str(channels), *map(str, SIZES[rank])])
    dims = ", ".join(f"Y{axis}" for axis in range(out or 2 + rank))
    return model(f"g (float[{lead}] x) => (float[{dims}] y) {{ {body} }}", opset=opset, **weights)


def rows(rank: int = 2, channels: int = 3) -> dict[str, Array]:
    return {"x": normal(3, channels, *SIZES[rank])}


# Attributes, in one to three dimensions

SETTINGS = [
    ("Conv", 3, ""),
    ("Conv", 1, "strides = {2}"),
    ("Conv", 3, "strides = {2}, pads = {1}{0}"),
    ("Conv", 2, "dilations = {2}, pads = {1}{2}"),
    ("Conv", 3, """auto_pad = "SAME_UPPER", strides = {2}"""),
    ("Conv", 2, """auto_pad = "SAME_LOWER", strides = {2}"""),
    ("Conv", 2, """auto_pad = "VALID", strides = {2}"""),
    ("ConvTranspose", 3, ""),
    ("ConvTranspose", 3, "strides = {2}"),
    ("ConvTranspose", 3, "strides = {2}, pads = {1}{0}, output_padding = {1}"),
    ("ConvTranspose", 2, "dilations = {2}, pads = {1}{2}"),
    ("ConvTranspose", 2, """auto_pad = "VALID", strides = {2}"""),
    ("ConvTranspose", 2, "strides = {3}, pads = {2}{1}"),
]


def written(attributes: str, rank: int) -> str:
    """`{2}` as a list with an entry per axis, `{1}{0}` as one with two."""
    for before in "0123":
        for behind in "0123":
            attributes = attributes.replace(
                f"{{{before}}}{{{behind}}}", str([int(before)] * rank + [int(behind)] * rank)
            )
    for value in "0123":
        attributes = attributes.replace(f"{{{value}}}", str([int(value)] * rank))
    return attributes


def kernel(operator: str, n: int, m: int, groups: int, size: int, rank: int) -> tuple[int, ...]:
    shape = (m, n // groups) if operator == "Conv" else (n, m // groups)
    return (*shape, *[size] * rank)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("operator", "size", "attributes"), SETTINGS)
def test_convolution_as_producer_and_consumer(
    operator: str, size: int, attributes: str, rank: int, groups: int, bias: bool
) -> None:
    options = written(attributes, rank)
    options = f"<group = {groups}{', ' if options else ''}{options}>"
    proto = image(
        f"""[c1] a = {operator} {options} (x, W1{", b1" if bias else ""})   h = Relu(a)
        [c2] y = {operator} {options} (h, W2{", b2" if bias else ""})""",
        rank=rank,
        channels=4,
        W1=kernel(operator, 4, 6, groups, size, rank), b1=(6,), W2=kernel(operator, 6, 4, groups, size, rank), b2=(4,),
    )  # fmt: skip
    assert widths(proto) == {"c1": 6 // groups}
    assert_sound(proto, rows(rank, 4), tolerance=1e-5)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_depthwise_convolution_as_follower(operator: str, rank: int, multiplier: int) -> None:
    wide = 6 * multiplier
    proto = image(
        f"""[c1] a = Conv(x, W1)   h = Relu(a)   [dw] d = {operator} <group = 6> (h, V, b)   k = Relu(d)
        [c2] y = Conv(k, W2)""",
        rank=rank,
        W1=kernel("Conv", 3, 6, 1, 1, rank), V=kernel(operator, 6, wide, 6, 2, rank), b=(wide,),
        W2=kernel("Conv", wide, 4, 1, 1, rank),
    )  # fmt: skip
    assert widths(proto) == {"c1": 6}
    assert "dw" not in refused(proto)
    assert_sound(proto, rows(rank), tolerance=1e-5)


def test_number_of_groups_of_a_depthwise_convolution_is_that_of_its_channels() -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   [dw] d = Conv <group = 6> (a, V)   [c2] y = Conv(d, W2)",
        W1=(6, 3, 1, 1), V=(6, 1, 2, 2), W2=(4, 6, 1, 1),
    )  # fmt: skip
    result = dropped(graph_of(proto), found(proto)["c1"], np.array([0, 2, 5]))
    assert onnx.helper.get_node_attr_value(node(result, "dw"), "group") == 3
    np.testing.assert_array_equal(constant(result, "V"), constant(proto, "V")[[0, 2, 5]])


def test_depthwise_convolution_upon_what_stays_is_left_alone() -> None:
    proto = image("[dw] d = Conv <group = 3> (x, V)   [c2] y = Conv(d, W2)", V=(6, 1, 2, 2), W2=(4, 6, 1, 1))
    assert refused(proto)["dw"] == "depthwise: its channels come and go with those of its input, which stay"


def test_depthwise_separable_blocks() -> None:
    proto = image(
        """[p1] a = Conv(x, A)   b = Relu(a)   [d1] c = Conv <group = 6, pads = [1, 1, 1, 1]> (b, D1)   d = Relu(c)
        [p2] e = Conv(d, B)   f = Relu(e)   [d2] g = Conv <group = 5, pads = [1, 1, 1, 1]> (f, D2)
        [p3] y = Conv(g, C)""",
        A=(6, 3, 1, 1), D1=(6, 1, 3, 3), B=(5, 6, 1, 1), D2=(5, 1, 3, 3), C=(2, 5, 1, 1),
    )  # fmt: skip
    assert widths(proto) == {"p1": 6, "p2": 5}
    assert_sound(proto, rows(), tolerance=1e-5)


def test_groups_of_producer_and_consumer_that_cross() -> None:
    """Groups of 2 tie channel i and i + 6, groups of 3 tie i, i + 4 and i + 8: two neurons are left."""
    proto = image(
        "[c1] a = Conv <group = 2> (x, W1)   h = Relu(a)   [c2] y = Conv <group = 3> (h, W2)",
        channels=4, W1=(12, 2, 1, 1), W2=(6, 4, 2, 2),
    )  # fmt: skip
    assert widths(proto) == {"c1": 2}
    assert_sound(proto, rows(2, 4), tolerance=1e-5)


# Into dense layers


@pytest.mark.parametrize(
    "way",
    [
        "h = Flatten(a)",
        "h = Reshape(a, rest)",
        "h = Reshape(a, fixed)",
        "s = Shape(a)   i = Gather(s, zero)   b = Unsqueeze(i, first)   "
        "t = Concat <axis = 0> (b, minus)   h = Reshape(a, t)",
        "s = Shape(x)   b = Slice(s, first, one)   t = Concat <axis = 0> (b, minus)   h = Reshape(a, t)",
        "p = Transpose <perm = [0, 2, 3, 1]> (a)   h = Reshape(p, rest)",
        "p = Transpose <perm = [0, 2, 3, 1]> (a)   q = Reshape(p, four)   h = Flatten(q)",
        "h0 = Reshape(a, apart)   h = Flatten(h0)",
    ],
)  # fmt: skip
def test_convolution_into_a_dense_layer(way: str) -> None:
    proto = image(
        f"[c1] a = Conv(x, W1, b1)   {way}   [fc] g = Gemm(h, W2, b2)   r = Relu(g)   [head] y = MatMul(r, W3)",
        out=2, W1=(4, 3, 3, 3), b1=(4,), W2=(48, 5), b2=(5,), W3=(5, 2),
        rest=np.int64([0, -1]), fixed=np.int64([-1, 48]), zero=np.int64(0), first=np.int64([0]), one=np.int64([1]),
        minus=np.int64([-1]), four=np.int64([0, 4, 3, -1]), apart=np.int64([0, 4, -1]),
    )  # fmt: skip
    assert widths(proto) == {"c1": 4, "fc": 5}
    assert_sound(proto, rows(), tolerance=1e-5)


def test_blocks_of_flattened_channels_lie_side_by_side() -> None:
    proto = image("[c1] a = Conv(x, W1)   h = Flatten(a)   [fc] y = Gemm(h, W2)", out=2, W1=(4, 3, 3, 3), W2=(48, 5))
    ((_, slicing),) = found(proto)["c1"].consumers
    np.testing.assert_array_equal(slicing.labels, np.repeat(np.arange(4), 12))


def test_blocks_of_channels_that_come_last_are_interleaved() -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   t = Transpose <perm = [0, 2, 3, 1]> (a)   h = Flatten(t)   [fc] y = Gemm(h, W2)",
        out=2, W1=(4, 3, 3, 3), W2=(48, 5),
    )  # fmt: skip
    ((_, slicing),) = found(proto)["c1"].consumers
    np.testing.assert_array_equal(slicing.labels, np.tile(np.arange(4), 12))


# Blocks of real networks


def test_residual_block_with_a_projection_shortcut() -> None:
    proto = image(
        """[c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1)   n1 = BatchNormalization(a, s1, t1, m1, v1)   r = Relu(n1)
        [c2] b = Conv <pads = [1, 1, 1, 1]> (r, W2)   [short] c = Conv(x, S)   d = Add(b, c)   e = Relu(d)
        [c3] f = Conv <pads = [1, 1, 1, 1]> (e, W3)   g = Add(f, e)   h = Relu(g)   [head] y = Conv(h, W4)""",
        W1=(5, 3, 3, 3), s1=(5,), t1=(5,), m1=(5,), v1=np.ones(5, np.float32), W2=(6, 5, 3, 3), S=(6, 3, 1, 1),
        W3=(6, 6, 3, 3), W4=(2, 6, 1, 1),
    )  # fmt: skip
    layers = found(proto)
    assert {name: layer.members for name, layer in layers.items()} == {"c1": ("c1",), "c2": ("c2", "short", "c3")}
    assert [part.name for part, _ in layers["c2"].consumers] == ["c3", "head"]
    assert_sound(proto, rows(), tolerance=1e-5)


def test_residual_add_with_the_input_is_refused() -> None:
    proto = image("[c1] a = Conv(x, W1)   [add] h = Add(a, x)   [c2] y = Conv(h, W2)", W1=(3, 3, 1, 1), W2=(2, 3, 1, 1))
    assert refused(proto)["c1"] == "Add 'add' joins its neurons with another value: 'x' is a graph input"


@pytest.mark.parametrize("pool", ["p = GlobalAveragePool(h)", "p = ReduceMean <axes = [2, 3]> (h)"])
def test_squeeze_and_excite_gate(pool: str) -> None:
    proto = image(
        f"""[c1] a = Conv(x, W1)   h = Relu(a)   {pool}   [down] q = Conv(p, D, d)   r = Relu(q)
        [up] u = Conv(r, U, b)   s = Sigmoid(u)   g = Mul(h, s)   [c2] y = Conv(g, W2)""",
        W1=(6, 3, 3, 3), D=(4, 6, 1, 1), d=(4,), U=(6, 4, 1, 1), b=(6,), W2=(2, 6, 1, 1),
    )  # fmt: skip
    layers = found(proto)
    assert {name: (layer.n, layer.members) for name, layer in layers.items()} == {
        "c1": (6, ("c1", "up")),
        "down": (4, ("down",)),
    }
    assert_sound(proto, rows(), tolerance=1e-5)


def test_fan_out_to_branches_that_are_concatenated() -> None:
    proto = image(
        """[c1] a = Conv(x, W1)   h = Relu(a)   [b1] p = Conv(h, A)   [b2] q = Conv <pads = [1, 1, 1, 1]> (h, B)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h)   c = Concat <axis = 1> (p, q, m)
        [c2] y = Conv(c, W2)""",
        W1=(4, 3, 1, 1), A=(3, 4, 1, 1), B=(5, 4, 3, 3), W2=(2, 12, 1, 1),
    )  # fmt: skip
    layers = found(proto)
    assert {name for layer in layers.values() for name in layer.members} == {"c1", "b1", "b2"}
    assert sum(layer.n for layer in layers.values()) == 12
    assert_sound(proto, rows(), tolerance=1e-5)


def test_upsampling_path_with_a_skip() -> None:
    proto = image(
        """[c1] a = Conv <pads = [1, 1, 1, 1]> (x, W1)   h = Relu(a)
        d = MaxPool <kernel_shape = [2, 1], strides = [2, 1]> (h)
        [c2] e = Conv(d, W2)   [up] u = ConvTranspose <strides = [2, 1]> (e, W3)   c = Concat <axis = 1> (u, h)
        [c3] y = Conv(c, W4)""",
        W1=(4, 3, 3, 3), W2=(5, 4, 1, 1), W3=(5, 3, 2, 1), W4=(2, 7, 1, 1),
    )  # fmt: skip
    assert sum(widths(proto).values()) == 12
    assert_sound(proto, rows(), tolerance=1e-5)


def test_decomposed_group_normalization() -> None:
    """As PyTorch exports it: Reshape, InstanceNormalization, Reshape back, then scale and shift."""
    proto = image(
        """[c1] a = Conv(x, W1)   r = Reshape(a, to)   i = InstanceNormalization(r, ones, zeros)   s = Shape(a)
        b = Reshape(i, s)   m = Mul(b, scale)   h = Add(m, shift)   [c2] y = Conv(h, W2)""",
        W1=(6, 3, 1, 1), to=np.int64([0, 3, -1]), ones=np.ones(3, np.float32), zeros=np.zeros(3, np.float32),
        scale=(6, 1, 1), shift=(6, 1, 1), W2=(2, 6, 2, 2),
    )  # fmt: skip
    assert widths(proto) == {"c1": 3}
    assert_sound(proto, rows(), tolerance=1e-5)


def test_gated_linear_unit_of_convolutions() -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   p, q = Split <axis = 1> (a)   s = Sigmoid(q)   h = Mul(p, s)   [c2] y = Conv(h, W2)",
        W1=(8, 3, 1, 1), W2=(2, 4, 1, 1),
    )  # fmt: skip
    assert widths(proto) == {"c1": 4}
    assert_sound(proto, rows(), tolerance=1e-5)


def test_swiglu_of_two_projections() -> None:
    proto = model(
        """g (float[N, T, 4] x) => (float[N, T, 4] y) {
            [gate] a = MatMul(x, A)   [up] b = MatMul(x, B)   s = Sigmoid(a)   t = Mul(a, s)   h = Mul(t, b)
            [down] y = MatMul(h, C)
        }""",
        A=(4, 6), B=(4, 6), C=(6, 4),
    )  # fmt: skip
    assert found(proto)["gate"].members == ("gate", "up")
    assert_sound(proto, {"x": normal(2, 3, 4)}, tolerance=1e-5)


# Where weights stand


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        ("W = Identity(V)", (6, 3, 2, 2)),
        ("W = Transpose <perm = [3, 2, 0, 1]> (V)", (2, 2, 3, 6)),
        ("U = Identity(V)   W = Identity(U)", (6, 3, 2, 2)),
        ("W = Reshape(V, kernel)", (6, 12)),
    ],
)
@pytest.mark.parametrize("read", ["producer", "consumer"])
def test_weight_that_is_made_of_another(made: str, shape: tuple[int, ...], read: str) -> None:
    convs = "[c1] a = Conv(x, W)   h = Relu(a)   [c2] y = Conv(h, O)"
    if read == "consumer":
        convs = "[c1] a = Conv(x, O)   h = Relu(a)   [c2] y = Conv(h, W)"
    other = (2, 6, 1, 1) if read == "producer" else (3, 3, 1, 1)
    proto = image(f"{made}   {convs}", V=shape, O=other, kernel=np.int64([6, 3, 2, 2]))
    assert widths(proto) == {"c1": 6 if read == "producer" else 3}
    assert_sound(proto, rows(), tolerance=1e-5)


@pytest.mark.parametrize("read", ["W1", "W2", "b1"])
def test_weight_stored_as_float16_stays_so(read: str) -> None:
    weights: dict[str, Any] = {"W1": (5, 3, 2, 2), "b1": (5,), "W2": (2, 5, 1, 1)}
    weights[f"{read}_half"] = normal(*weights.pop(read), dtype=np.float16)
    proto = image(
        f"{read} = Cast <to = 1> ({read}_half)   [c1] a = Conv(x, W1, b1)   h = Relu(a)   [c2] y = Conv(h, W2)",
        **weights,
    )
    assert widths(proto) == {"c1": 5}
    result = dropped(graph_of(proto), found(proto)["c1"], np.array([1, 3]))
    stored = next(tensor for tensor in result.graph.initializer if tensor.name == f"{read}_half")
    assert stored.data_type == TensorProto.FLOAT16
    assert 2 in stored.dims
    assert [part.op_type for part in result.graph.node] == ["Cast", "Conv", "Relu", "Conv"]
    assert_sound(proto, rows(), tolerance=1e-5)


def test_follower_stored_as_float16_is_cut() -> None:
    proto = image(
        "c = Cast <to = 1> (c16)   [c1] a = Conv(x, W1)   h = Mul(a, c)   [c2] y = Conv(h, W2)",
        c16=normal(5, 1, 1, dtype=np.float16), W1=(5, 3, 1, 1), W2=(2, 5, 1, 1),
    )  # fmt: skip
    assert widths(proto) == {"c1": 5}
    assert_sound(proto, rows(), tolerance=1e-5)


@pytest.mark.parametrize("tie", ["", "T = Identity(W)   "])
def test_tied_kernels_are_refused(tie: str) -> None:
    proto = image(
        f"{tie}[c1] a = Conv(x, W)   h = Relu(a)   "
        f"[c2] b = Conv(h, {'T' if tie else 'W'})   k = Relu(b)   [c3] y = Conv(k, O)",
        W=(3, 3, 1, 1), O=(2, 3, 1, 1),
    )  # fmt: skip
    assert found(proto) == {}
    assert "is shared with" in refused(proto)["c1"]
    assert "is shared with" in refused(proto)["c2"]


def test_kernel_tied_to_a_dense_weight_is_refused() -> None:
    proto = image(
        """V = Reshape(W, two)   [c1] a = Conv(x, W)   p = GlobalAveragePool(a)   f = Flatten(p)   [fc] g = Gemm(f, V)
        [head] y = Gemm(g, O)""",
        out=2, W=(3, 3, 1, 1), two=np.int64([3, 3]), O=(3, 2),
    )  # fmt: skip
    assert found(proto) == {}


@pytest.mark.parametrize("value", ["a", "h", "p"])
def test_value_that_is_a_graph_output_is_refused(value: str) -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   h = Relu(a)   p = MaxPool <kernel_shape = [2, 2]> (h)   [c2] y = Conv(p, W2)",
        W1=(5, 3, 1, 1), W2=(2, 5, 1, 1),
    )  # fmt: skip
    proto.graph.output.append(onnx.helper.make_tensor_value_info(value, TensorProto.FLOAT, list("abcd")))
    assert refused(proto)["c1"] == f"its value '{value}' is a graph output"


def test_value_captured_by_a_body_is_refused() -> None:
    proto = image(
        """[c1] a = Conv(x, W1)   h = Relu(a)   c = Constant <value = bool {1}> ()
        [choose] z = If (c) <
            then_branch = yes () => (float[A, B, C, D] t) { t = Identity(h) },
            else_branch = no () => (float[A, B, C, D] e) { e = Neg(h) }
        >
        [c2] y = Conv(h, W2)""",
        W1=(5, 3, 1, 1), W2=(2, 5, 1, 1),
    )  # fmt: skip
    assert refused(proto)["c1"] == "the body of If 'choose' reads its value 'h'"


def test_output_of_some_neurons_leaves_the_others_free() -> None:
    """One half of a Split is given out: the neurons of the other half can still go."""
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] z, float[N, 2] y) {
            [fc1] a = MatMul(x, W1)   z, h = Split <axis = 1> (a, sizes)   [fc2] y = MatMul(h, W2)
        }""",
        W1=(4, 8), sizes=np.int64([3, 5]), W2=(5, 2),
    )  # fmt: skip
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, {"x": normal(9, 4)}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("body", "n"),
    [
        ("s = Shape(h)   [size] z = Identity(s)", None),
        ("s = Shape(h)   g = Gather(s, zero)   [size] z = Identity(g)", 5),
        ("s = Shape(h)   g = Gather(s, one)   [size] z = Identity(g)", None),
        ("s = Shape <start = 2> (h)   [size] z = Identity(s)", 5),
        ("s = Shape(x)   [size] z = Identity(s)", 5),
    ],
)
def test_sizes_that_are_graph_outputs(body: str, n: int | None) -> None:
    proto = image(
        f"[c1] a = Conv(x, W1)   h = Relu(a)   {body}   [c2] y = Conv(h, W2)",
        W1=(5, 3, 1, 1), W2=(2, 5, 1, 1), zero=np.int64(0), one=np.int64([1]),
    )  # fmt: skip
    rank = {"zero": [], "one": [1]}.get(body.split("s, ")[1][:4].strip(")") if "Gather" in body else "", ["S"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.INT64, rank))
    if n is None:
        assert "how many neurons there are" in refused(proto)["c1"]
    else:
        assert widths(proto) == {"c1": 5}
        assert_sound(proto, rows(), tolerance=1e-5)


def test_matmul_passes_on_neurons_along_another_axis() -> None:
    """Token mixing: the second MatMul mixes positions, not channels."""
    proto = model(
        """g (float[N, 3, 4] x) => (float[N, 3, 2] y) {
            [fc1] a = MatMul(x, W1)   t = Transpose <perm = [0, 2, 1]> (a)   m = MatMul(t, M)   g = Relu(m)
            h = Transpose <perm = [0, 2, 1]> (g)   [fc2] y = MatMul(h, W2)
        }""",
        W1=(4, 5), M=(3, 3), W2=(5, 2),
    )  # fmt: skip
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, {"x": normal(2, 3, 4)}, tolerance=1e-5)


def test_dropping_two_layers_of_one_model_at_once() -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   h = Relu(a)   [c2] b = Conv(h, W2)   k = Relu(b)   "
        "f = Flatten(k)   [fc] y = Gemm(f, W3)",
        out=2, W1=(5, 3, 1, 1), W2=(4, 5, 3, 3), W3=(48, 2),
    )  # fmt: skip
    graph = graph_of(proto)
    layers = find_layers(graph)[0]
    once = dropped(graph, layers[0], np.array([0, 2]))
    again = graph_of(once)
    twice = dropped(again, find_layers(again)[0][1], np.array([1, 3]))
    quiet = silenced(graph, [(layers[0], np.array([1, 3, 4])), (layers[1], np.array([0, 2]))])
    assert gap(run(quiet, rows())[0], run(twice, rows())[0]) <= 1e-5


def test_all_but_one_channel_of_a_grouped_convolution() -> None:
    proto = image(
        "[c1] a = Conv(x, W1)   h = Relu(a)   [c2] y = Conv <group = 2> (h, W2)", W1=(6, 3, 1, 1), W2=(4, 3, 2, 2)
    )
    graph = graph_of(proto)
    assert max(oracle_a(graph, find_layers(graph)[0][0], rows(), np.array([1])).values()) <= 1e-5
