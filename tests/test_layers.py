"""Finding layers and projections: everything that counts as one, and each refusal with its reason."""

from typing import Any

import numpy as np
import onnx
import pytest
from models import (
    Array,
    Weight,
    constant,
    graph_of,
    hidden,
    matmul_add,
    mlp,
    model,
    normal,
    run,
    shared_vector,
    two_heads,
)
from onnx import ModelProto, TensorProto, numpy_helper
from oracles import assert_sound, dropped, oracle_a

from onnxdpp.errors import ModelError
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.projections import Projection, find_projections

X = {"x": normal(9, 4)}


def found(proto: ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(graph_of(proto))[0]}


def refused(proto: ModelProto) -> dict[str, str]:
    """Name -> reason."""
    return {refusal.name: refusal.reason for refusal in find_layers(graph_of(proto))[1]}


def projections(proto: ModelProto) -> dict[str, Projection]:
    return {part.name: part for part in find_projections(graph_of(proto))[0]}


def widths(proto: ModelProto) -> dict[str, int]:
    return {name: layer.n for name, layer in found(proto).items()}


# Dense nodes


@pytest.mark.parametrize("make", [mlp, matmul_add, two_heads, shared_vector])
def test_layers_found_in_small_models(make: Any) -> None:
    named = dict(part.strip(" .").rstrip(")").split(" (") for part in make.__doc__.split("Layers: ")[1].split(","))
    assert widths(make()) == {name: int(width) for name, width in named.items()}


def gemm(attributes: str, *, transposed: bool = False, **weights: Weight) -> ModelProto:
    """A Gemm with `attributes`, Relu, MatMul. Layers: fc1 (5)."""
    return model(
        f"""g (float[N, 4] x) => (float[N, 3] y) {{
            [fc1] a = Gemm {attributes} (x, W1, b1)
            h = Relu(a)
            [fc2] y = MatMul(h, W2)
        }}""",
        **{"W1": (5, 4) if transposed else (4, 5), "b1": (5,), "W2": (5, 3), **weights},
    )


@pytest.mark.parametrize(
    ("attributes", "transposed"),
    [
        ("", False),
        ("<transB = 0>", False),
        ("<transB = 1>", True),
        ("<alpha = 0.5>", False),
        ("<alpha = -2.0, transB = 1>", True),
        ("<beta = 0.5>", False),
        ("<beta = 0.0>", False),
        ("<transA = 0>", False),
    ],
)
def test_gemm_as_producer(attributes: str, transposed: bool) -> None:
    proto = gemm(attributes, transposed=transposed)
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, X, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), (1, 1), ()])
def test_gemm_bias_of_every_shape(shape: tuple[int, ...]) -> None:
    assert_sound(gemm("", b1=shape), X, tolerance=1e-5)


def test_gemm_bias_with_a_row_for_each_row() -> None:
    assert_sound(gemm("", b1=(9, 5)), X, tolerance=1e-5)


def test_gemm_bias_with_an_entry_for_each_row_is_left_alone() -> None:
    proto = gemm("", b1=(9, 1))
    assert found(proto)["fc1"].followers == ()
    assert_sound(proto, X, tolerance=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_effective_weights_are_those_that_act(transposed: bool, alpha: float) -> None:
    proto = gemm(f"<alpha = {alpha}, transB = {int(transposed)}>", transposed=transposed)
    part = projections(proto)["fc1"]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    expected = run(proto, X)[1] - constant(proto, "b1")
    np.testing.assert_allclose(X["x"] @ part.effective(constant(proto, "W1")), expected, rtol=0, atol=1e-5)


def test_stored_weights_invert_effective_ones() -> None:
    proto = gemm("<alpha = -0.5, transB = 1>", transposed=True)
    part = projections(proto)["fc1"]
    weights = constant(proto, "W1")
    np.testing.assert_array_equal(part.stored(part.effective(weights)), weights)


def test_gemm_with_a_transposed_input_is_refused() -> None:
    proto = model(
        "g (float[4, N] x) => (float[N, 3] y) { [fc1] a = Gemm <transA = 1> (x, W1)  [fc2] y = MatMul(a, W2) }",
        W1=(4, 5),
        W2=(5, 3),
    )
    assert refused(proto)["fc1"] == "its input is transposed (transA)"


def test_gemm_with_alpha_zero_is_refused() -> None:
    assert refused(gemm("<alpha = 0.0>"))["fc1"] == "its alpha is 0"


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_matmul_on_activations_of_any_rank(rank: int) -> None:
    lead = "".join(f"D{axis}, " for axis in range(rank - 1))
    proto = model(
        f"""g (float[{lead}4] x) => (float[{lead}3] y) {{
            [fc1] p = MatMul(x, W1)   a = Add(p, b1)   h = Tanh(a)   [fc2] y = MatMul(h, W2)
        }}""",
        W1=(4, 5),
        b1=(5,),
        W2=(5, 3),
    )
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, {"x": normal(*range(2, 1 + rank), 4)}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("expression", "factor"),
    [("Add(p, b1)", 1.0), ("Add(b1, p)", 1.0), ("Sub(p, b1)", -1.0), ("Sub(b1, p)", -1.0)],
)
def test_bias_of_a_matmul_on_either_side(expression: str, factor: float) -> None:
    proto = model(
        f"""g (float[N, 4] x) => (float[N, 3] y) {{
            [fc1] p = MatMul(x, W1)   a = {expression}   h = Tanh(a)   [fc2] y = MatMul(h, W2)
        }}""",
        W1=(4, 5),
        b1=(5,),
        W2=(5, 3),
    )
    bias = projections(proto)["fc1"].bias
    assert bias is not None
    assert (graph_of(proto).name_at(bias.use), bias.factor) == ("b1", factor)
    assert_sound(proto, X, tolerance=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(p, b1)   o = Identity(p)",
        "a = Mul(p, b1)   o = Neg(a)",
        "a = Add(p, p)   o = Neg(a)",
        "x2 = Abs(b1)   a = Add(p, x2)   o = Neg(a)",
        """a = Add(p, b1)   c = Constant <value = bool {1}> ()
        o = If (c) <
            then_branch = yes () => (float[N, 5] t) { t = Identity(p) },
            else_branch = no () => (float[N, 5] e) { e = Neg(p) }
        >""",
    ],
    ids=["read-twice", "Mul", "itself", "computed", "captured"],
)
def test_what_is_no_bias_of_a_matmul(body: str) -> None:
    proto = model(
        f"g (float[N, 4] x) => (float[N, 5] a, float[N, 5] o) {{ [fc1] p = MatMul(x, W1)  {body} }}",
        W1=(4, 5),
        b1=(5,),
    )
    assert projections(proto)["fc1"].bias is None


def test_constant_added_to_a_graph_output_is_no_bias() -> None:
    proto = model(
        "g (float[N, 4] x) => (float[N, 5] p, float[N, 5] a) { [fc1] p = MatMul(x, W1)   a = Add(p, b1) }",
        W1=(4, 5),
        b1=(5,),
    )
    assert projections(proto)["fc1"].bias is None


def test_gemm_bias_scaled_to_nothing_cannot_hold_an_intercept() -> None:
    assert projections(gemm("<beta = 0.0>"))["fc1"].bias is None


def test_gemm_bias_with_beta_holds_an_intercept() -> None:
    bias = projections(gemm("<beta = 0.5>"))["fc1"].bias
    assert bias is not None
    assert bias.factor == 0.5


def test_weights_in_constant_nodes() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 1] y) {
            W1 = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
            b1 = Constant <value_floats = [0.5, -0.5]> ()
            W2 = Constant <value = float[2, 1] {1, -1}> ()
            [fc1] a = Gemm(x, W1, b1)   h = Relu(a)   [fc2] y = MatMul(h, W2)
        }"""
    )
    assert widths(proto) == {"fc1": 2}
    assert_sound(proto, X, tolerance=1e-5)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("float16", np.float16, 1e-2), ("double", np.float64, 1e-14)])
def test_other_float_types(name: str, dtype: type, tolerance: float) -> None:
    proto = model(
        f"""g ({name}[N, 4] x) => ({name}[N, 3] y) {{
            [fc1] a = Gemm(x, W1, b1)   h = Relu(a)   [fc2] y = MatMul(h, W2)
        }}""",
        dtype=dtype,
        W1=(4, 5),
        b1=(5,),
        W2=(5, 3),
    )
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, {"x": normal(9, 4, dtype=dtype)}, tolerance=tolerance)


def test_layers_come_in_topological_order() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) {
            [one] a = MatMul(x, A)   [two] b = MatMul(x, B)   [three] c = MatMul(b, C)
            [four] y = MatMul(a, D)   [five] z = MatMul(c, E)
        }""",
        A=(4, 3), B=(4, 3), C=(3, 3), D=(3, 3), E=(3, 3),
    )  # fmt: skip
    assert list(found(proto)) == ["one", "two", "three"]


def test_projections_are_all_dense_nodes_first_and_last_included() -> None:
    assert {name: (part.n, part.m, part.tap) for name, part in projections(mlp()).items()} == {
        "fc1": (4, 6, "x"),
        "fc2": (6, 5, "h"),
        "fc3": (5, 3, "k"),
    }


# Elementwise operators: what their parameters may be


def test_clip_between_constant_bounds() -> None:
    proto = hidden("h = Clip(a, low, high)", low=np.float32(-0.5), high=np.float32(1))
    assert found(proto)["fc1"].followers == ()
    assert_sound(proto, X, tolerance=1e-5)


def test_clip_with_bounds_in_attributes() -> None:
    proto = hidden("h = Clip <min = -0.5, max = 1.0> (a)", opset=10)
    assert_sound(proto, X, tolerance=1e-5)


def test_clip_between_bounds_that_are_inputs() -> None:
    proto = hidden("h = Clip(a, , high)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("high", TensorProto.FLOAT, []))
    assert_sound(proto, X | {"high": np.array(0.5, np.float32)}, tolerance=1e-5)


@pytest.mark.parametrize("opset", [7, 10])
def test_dropout_with_its_ratio_in_an_attribute(opset: int) -> None:
    assert_sound(hidden("h = Dropout <ratio = 0.9> (a)", opset=opset), X, tolerance=1e-5)


@pytest.mark.parametrize("opset", [12, 13])
def test_dropout_kept_in_inference_mode(opset: int) -> None:
    proto = hidden("h = Dropout(a, ratio, train)", opset=opset, ratio=np.float32(0.9), train=np.bool_(False))
    assert_sound(proto, X, tolerance=1e-5)


def test_dropout_in_training_mode_is_refused() -> None:
    proto = hidden("[d] h = Dropout(a, ratio, train)", ratio=np.float32(0.9), train=np.bool_(True))
    assert refused(proto)["fc1"] == "Dropout 'd' may drop at random (training mode)"


def test_dropout_whose_mode_is_an_input_is_refused() -> None:
    proto = hidden("[d] h = Dropout(a, ratio, train)", ratio=np.float32(0.9))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("train", TensorProto.BOOL, []))
    assert refused(proto)["fc1"] == "Dropout 'd' may drop at random (training mode)"


def test_dropout_whose_mode_callers_may_override_is_refused() -> None:
    proto = hidden("[d] h = Dropout(a, ratio, train)", ratio=np.float32(0.9), train=np.bool_(False))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("train", TensorProto.BOOL, []))
    assert refused(proto)["fc1"] == "Dropout 'd' may drop at random (training mode)"


def test_dropout_whose_mask_is_read_is_refused() -> None:
    proto = hidden("[d] h, mask = Dropout(a)   z = Not(mask)")
    assert refused(proto)["fc1"] == "Dropout 'd' has its output 'mask' read"


def test_dropout_whose_mask_nobody_reads() -> None:
    assert_sound(hidden("h, mask = Dropout(a)"), X, tolerance=1e-5)


@pytest.mark.parametrize(("shape", "followers"), [((5,), 1), ((1,), 0), ((1, 5), 1)])
def test_prelu_slopes_for_each_neuron_or_for_all(shape: tuple[int, ...], followers: int) -> None:
    proto = hidden("h = PRelu(a, slope)", slope=shape)
    assert len(found(proto)["fc1"].followers) == followers
    assert_sound(proto, X, tolerance=1e-5)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("side", ["(a, c)", "(c, a)"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5,), 0), ((1, 5), 1), ((2, 1, 5), 2), ((), None), ((1,), None), ((2, 1, 1), None)]
)
def test_constant_is_sliced_where_it_has_an_entry_for_each_neuron(
    operator: str, side: str, shape: tuple[int, ...], axis: int | None
) -> None:
    lead = "2, N" if len(shape) == 3 else "N"
    proto = hidden(f"h = {operator}{side}", c=np.abs(normal(*shape)) + 1)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].CopyFrom(onnx.parser.parse_graph(f"g () => (float[{lead}, 3] y) {{ }}").output[0])
    assert [part.axis for part in found(proto)["fc1"].followers] == ([] if axis is None else [axis])
    assert_sound(proto, X, tolerance=1e-5)


def test_constant_with_an_entry_for_each_row_and_neuron() -> None:
    assert_sound(hidden("h = Mul(a, c)", c=(9, 5)), X, tolerance=1e-5)


def test_constant_in_a_constant_node_is_sliced() -> None:
    proto = hidden("c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0, 5.0]> ()   h = Mul(a, c)")
    assert_sound(proto, X, tolerance=1e-5)


# Regions


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(a)   h = Mul(a, s)",
        "d = Div(a, two)   e = Erf(d)   f = Add(e, one)   g = Mul(a, f)   h = Mul(g, half)",
        """c = Pow(a, three)   d = Mul(c, small)   e = Add(a, d)   f = Mul(e, two)   g = Tanh(f)   i = Add(g, one)
        j = Mul(a, i)   h = Mul(j, half)""",
        "s = Softplus(a)   t = Tanh(s)   h = Mul(a, t)",
        "n = Neg(a)   p = Relu(a)   m = Relu(n)   h = Max(p, m, a)",
        "h = Mul(a, a)",
    ],
    ids=["SiLU", "Erf-Gelu", "tanh-Gelu", "Mish", "both-sides", "square"],
)
def test_composed_activation(body: str) -> None:
    scalars = {"one": 1, "two": 2, "three": 3, "half": 0.5, "small": 0.044715}
    proto = hidden(body, **{name: np.float32(value) for name, value in scalars.items()})
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, X, tolerance=1e-5)


def test_two_heads_are_one_layer_with_two_consumers() -> None:
    layer = found(two_heads())["fc1"]
    assert [(part.name, part.tap) for part, _ in layer.consumers] == [("head1", "h"), ("head2", "t")]


def test_two_heads_that_read_different_values() -> None:
    assert_sound(two_heads(), X, tolerance=1e-5)


def test_two_heads_that_read_one_value() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y, float[N, 2] z) {
            [fc1] a = MatMul(x, W1)   h = Relu(a)   [head1] y = MatMul(h, W2)   [head2] z = MatMul(h, W3)
        }""",
        W1=(4, 5), W2=(5, 3), W3=(5, 2),
    )  # fmt: skip
    assert len(found(proto)["fc1"].consumers) == 2
    assert_sound(proto, X, tolerance=1e-5)


def test_value_that_nobody_reads_does_no_harm() -> None:
    assert_sound(hidden("h = Relu(a)   unread = Exp(a)"), X, tolerance=1e-5)


def test_changed_values_are_those_that_carry_the_neurons() -> None:
    assert found(two_heads())["fc1"].changed == {"a", "h", "t"}


# Refusals


def with_if(condition_reads: str) -> ModelProto:
    """An If whose bodies read the value named. Layers: none."""
    proto = hidden(
        f"""h = Relu(a)
        [choose] z = If (c) <
            then_branch = yes () => (float[N, M] t) {{ t = Identity({condition_reads}) }},
            else_branch = no () => (float[N, M] e) {{ e = Neg({condition_reads}) }}
        >"""
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return proto


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("[s] h = Softmax(a)", {}, "Softmax 's' mixes neurons"),
        ("[n] h = LayerNormalization(a, scale)", {"scale": (5,)}, "LayerNormalization 'n' mixes neurons"),
        ("[t] b, i = TopK(a, k)   h = Relu(b)", {"k": np.int64([5])}, "TopK 't' mixes neurons"),
        ("h = Relu(a)   [m] z = ReduceMean(h)", {}, "ReduceMean 'm' mixes neurons"),
        ("Softmax_out = Softmax(a)   h = Relu(Softmax_out)", {}, "Softmax 'Softmax_out' mixes neurons"),
        ("h = Relu(a)   [sq] z = MatMul(h, h)", {},
         "its consumer MatMul 'sq' cannot be refitted: it multiplies two computed values, as attention does; "
         "heads and their dimensions are not pruned"),
        ("[g] h = Gemm(x, V, a)", {"V": (4, 5)}, "Gemm 'g' takes its neurons as a parameter"),
    ],
)  # fmt: skip
def test_hidden_value_is_refused(body: str, weights: dict[str, Weight], reason: str) -> None:
    proto = hidden(body, **weights)
    assert refused(proto)["fc1"] == reason


def test_neurons_joined_with_an_input_are_refused() -> None:
    proto = hidden("[join] h = Add(x2, a)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["N", 5]))
    assert refused(proto)["fc1"] == "Add 'join' joins its neurons with another value: 'x2' is a graph input"


def test_neurons_beside_a_constant_along_another_axis_are_refused() -> None:
    """As a class token is put in front of the others."""
    proto = hidden("[join] h = Concat <axis = 0> (a, token)", token=(1, 5))
    assert refused(proto)["fc1"] == "Concat 'join' joins its neurons with the constant 'token'"


def test_residual_connection_is_refused() -> None:
    proto = model(
        """g (float[N, 5] x) => (float[N, 3] y) {
            r = Relu(x)   [fc1] a = MatMul(r, W1)   [join] h = Add(a, r)   [fc2] y = MatMul(h, W2)
        }""",
        W1=(5, 5),
        W2=(5, 3),
    )
    assert refused(proto)["fc1"] == "Add 'join' joins its neurons with another value: 'r' is computed by Relu 'r'"


def test_neurons_of_two_producers_are_one_layer() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            [one] a = MatMul(x, A)   [two] b = MatMul(x, B)   [join] h = Mul(a, b)   [fc2] y = MatMul(h, W2)
        }""",
        A=(4, 5), B=(4, 5), W2=(5, 3),
    )  # fmt: skip
    assert found(proto)["one"].members == ("one", "two")
    assert widths(proto) == {"one": 5}
    assert_sound(proto, X, tolerance=1e-5)


def test_graph_output_is_refused() -> None:
    proto = hidden("h = Relu(a)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 5]))
    assert refused(proto)["fc1"] == "its value 'h' is a graph output"


def test_neurons_that_nothing_reads_are_refused() -> None:
    proto = hidden("h = Relu(a)   [lost] z = MatMul(x, V)", V=(4, 2))
    assert refused(proto)["lost"] == "no Gemm, MatMul or Conv reads its neurons"


def test_value_captured_by_a_body_is_refused() -> None:
    assert refused(with_if("h"))["fc1"] == "the body of If 'choose' reads its value 'h'"


def test_weight_captured_by_a_body_is_refused() -> None:
    assert refused(with_if("W1"))["fc1"] == "its weight 'W1' is shared with the body of If 'choose'"


def test_consumer_weight_captured_by_a_body_is_refused() -> None:
    reason = "its consumer MatMul 'fc2' cannot be refitted: its weight 'W2' is shared with the body of If 'choose'"
    assert refused(with_if("W2"))["fc1"] == reason


def test_name_of_the_body_itself_captures_nothing() -> None:
    proto = with_if("x")
    for branch in proto.graph.node[2].attribute:
        branch.g.node.insert(0, onnx.helper.make_node("Relu", ["x"], ["inner"]))
        branch.g.node[1].input[0] = "inner"
    assert widths(proto) == {"fc1": 5}


def test_shared_weight_is_refused() -> None:
    proto = hidden("h = Relu(a)   [other] z = MatMul(x, W1)")
    assert refused(proto)["fc1"] == "its weight 'W1' is shared with MatMul 'other'"


def test_tied_transposed_weight_is_refused() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 4] y) {
            [fc1] a = MatMul(x, W1)   h = Relu(a)   [tie] W2 = Transpose(W1)   [fc2] y = MatMul(h, W2)
        }""",
        W1=(4, 5),
    )
    assert refused(proto) == {
        "fc1": "its weight 'W1' is shared with Transpose 'tie'",
        "fc2": "its weight 'W2' is shared with MatMul 'fc1'",
    }


def test_weight_that_is_a_graph_output_is_refused() -> None:
    proto = hidden("h = Relu(a)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("W2", TensorProto.FLOAT, [5, 3]))
    reason = "its consumer MatMul 'fc2' cannot be refitted: its weight 'W2' is shared with the graph's outputs"
    assert refused(proto)["fc1"] == reason


def test_weight_that_is_an_input_is_refused() -> None:
    proto = hidden("h = Relu(a)   [fc3] z = MatMul(h, V)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("V", TensorProto.FLOAT, [5, 3]))
    assert refused(proto) == {
        "fc1": "its consumer MatMul 'fc3' cannot be refitted: its weight is not constant: 'V' is a graph input",
        "fc2": "its value 'y' is a graph output",
        "fc3": "its weight is not constant: 'V' is a graph input",
    }


def test_constant_on_the_left_is_refused() -> None:
    proto = model(
        """g (float[4, N] x) => (float[3, N] y) {
            [fc1] a = MatMul(W1, x)   h = Relu(a)   [fc2] y = MatMul(W2, h)
        }""",
        W1=(5, 4),
        W2=(3, 5),
    )
    assert refused(proto) == dict.fromkeys(["fc1", "fc2"], "its constant stands on the left")


@pytest.mark.parametrize(
    ("weight", "shown"),
    [(normal(2, 4, 5), "float32 (2, 4, 5)"), (normal(4), "float32 (4,)")],
)
def test_weight_that_is_no_matrix_is_refused(weight: Array, shown: str) -> None:
    proto = model(
        "g (float[2, N, 4] x) => (float y) { [fc1] z = MatMul(x, W1)   y = ReduceSum <keepdims = 0> (z) }", W1=weight
    )
    assert refused(proto)["fc1"] == f"its weight 'W1' is {shown}, not a matrix"


def test_weight_of_integers_is_refused() -> None:
    proto = model("g (int32[N, 4] x) => (int32[N, 2] y) { [fc1] y = MatMul(x, W1) }", W1=np.ones((4, 2), np.int32))
    assert refused(proto)["fc1"] == "its weight 'W1' is int32 (4, 2), not an array of float16, float32 or float64"


def test_weight_of_bfloat16_is_refused() -> None:
    proto = model("g (bfloat16[N, 4] x) => (bfloat16[N, 2] y) { [fc1] y = MatMul(x, W1) }")
    proto.graph.initializer.append(onnx.helper.make_tensor("W1", TensorProto.BFLOAT16, [4, 2], np.ones(8)))
    assert refused(proto)["fc1"] == "its weight 'W1' is bfloat16 (4, 2), not an array of float16, float32 or float64"


def test_unknown_domain_is_refused() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            [fc1] a = MatMul(x, W1)   [f] h = com.microsoft.QuickGelu(a)   [fc2] y = MatMul(h, W2)
        }""",
        imports={"com.microsoft": 1},
        W1=(4, 5),
        W2=(5, 3),
    )
    reason = "com.microsoft::QuickGelu 'f' is of the domain 'com.microsoft', which onnxdpp does not know"
    assert refused(proto)["fc1"] == reason


def test_external_data_without_a_folder_are_refused() -> None:
    proto = mlp()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "W2")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    reason = "its weight is not constant: 'W2' lies in external data; load the model by its path"
    assert refused(proto)["fc2"] == reason
    assert refused(proto)["fc1"] == f"its consumer Gemm 'fc2' cannot be refitted: {reason}"


def test_sparse_weight_is_refused() -> None:
    proto = hidden("h = Relu(a)   [fc3] z = MatMul(x, S)")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1, 2]), "S"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([3, 7]), "S_indices"))
    sparse.dims.extend([4, 5])
    assert refused(proto)["fc3"] == "its weight is not constant: 'S' is a sparse initializer"


def test_overridable_weight_is_refused() -> None:
    proto = mlp()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("W1", TensorProto.FLOAT, [4, 6]))
    reason = "its weight is not constant: 'W1' is also a graph input, so that callers may override it"
    assert refused(proto)["fc1"] == reason


def test_overridable_bias_is_refused() -> None:
    proto = mlp()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("b1", TensorProto.FLOAT, [6]))
    reason = "its bias is not constant: 'b1' is also a graph input, so that callers may override it"
    assert refused(proto)["fc1"] == reason


def test_weights_listed_as_inputs_before_ir_version_4() -> None:
    proto = mlp(ir_version=3)
    assert {value.name for value in proto.graph.input} > {"W1", "b1", "W2"}
    assert_sound(proto, X, tolerance=1e-5)


def test_bias_that_is_computed_is_refused() -> None:
    proto = model(
        """g (float[N, 4] x, float[5] c) => (float[N, 3] y) {
            [fc1] a = Gemm(x, W1, c)   h = Relu(a)   [fc2] y = MatMul(h, W2)
        }""",
        W1=(4, 5),
        W2=(5, 3),
    )
    assert refused(proto)["fc1"] == "its bias is not constant: 'c' is a graph input"


def test_bias_that_does_not_fit_is_refused() -> None:
    """The checker lets it pass, onnxruntime does not."""
    reason = refused(mlp(b1=(7,)))["fc1"]
    assert reason == "its bias broadcasts 6 neurons against 7 entries"


def noisy(where: str) -> ModelProto:
    """Noise added before or behind the first MatMul. Layers: none."""
    before = "r = RandomNormalLike(x)   v = Add(x, r)   [fc1] a = MatMul(v, W1)   h = Relu(a)"
    behind = "[fc1] a = MatMul(x, W1)   r = RandomNormalLike(a)   [join] h = Add(a, r)"
    return model(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ {before if where == 'before' else behind} [fc2] y = MatMul(h, W2) }}",
        W1=(4, 5),
        W2=(5, 3),
    )


def test_neurons_downstream_of_a_random_operator_are_refused() -> None:
    assert refused(noisy("before"))["fc1"] == "its input 'v' depends on a random operator"


def test_neurons_read_by_a_random_operator_are_refused() -> None:
    assert refused(noisy("behind"))["fc1"] == "RandomNormalLike 'r' draws at random"


def test_random_operator_in_a_body_is_seen() -> None:
    proto = model(
        """g (float[N, 4] x, bool c) => (float[N, 3] y) {
            v = If (c) <
                then_branch = yes () => (float[N, 4] t) { t = RandomNormalLike(x) },
                else_branch = no () => (float[N, 4] e) { e = Identity(x) }
            >
            [fc1] a = MatMul(v, W1)   [fc2] y = MatMul(a, W2)
        }""",
        W1=(4, 5),
        W2=(5, 3),
    )
    assert refused(proto)["fc1"] == "its input 'v' depends on a random operator"


@pytest.mark.parametrize(
    "functions",
    [
        "noise (p) => (q) { r = RandomNormalLike(p)   q = Add(p, r) }",
        "noise (p) => (q) { r = Constant <value_float = 0.5> ()   t = Cast <to = 9> (r)   q, m = Dropout(p, r, t) }",
    ],
)
def test_random_operator_in_a_function_is_seen(functions: str) -> None:
    assert refused(behind_a_function(functions))["fc1"] == "its input 'v' depends on a random operator"


def test_random_operator_in_a_function_that_a_function_calls_is_seen() -> None:
    proto = behind_a_function(
        "noise (p) => (q) { q = local.one(p) }",
        "one (p) => (q) { q = local.two(p) }",
        "two (p) => (q) { q = RandomNormalLike(p) }",
    )
    assert refused(proto)["fc1"] == "its input 'v' depends on a random operator"


def test_function_without_a_random_operator_is_no_hindrance_upstream() -> None:
    proto = behind_a_function("noise (p) => (q) { r, m = Dropout(p)   q = Relu(r) }")
    assert widths(proto) == {"fc1": 5}
    assert_sound(proto, X, tolerance=1e-5)


def behind_a_function(*functions: str) -> ModelProto:
    """A call of local.noise, then two MatMuls. Layers: fc1 (5), unless the noise is random."""
    return model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            v = local.noise(x)   [fc1] a = MatMul(v, W1)   [fc2] y = MatMul(a, W2)
        }""",
        imports={"local": 1},
        functions=" ".join(f'<domain: "local", opset_import: ["": 17, "local": 1]> {text}' for text in functions),
        W1=(4, 5),
        W2=(5, 3),
    )


def test_constant_that_spreads_one_neuron_is_refused() -> None:
    proto = hidden("[spread] h = Add(a, c)", W1=(4, 1), c=(5,))
    assert refused(proto)["fc1"] == "Add 'spread' broadcasts 1 neurons against 5 entries"


def test_opset_6_is_refused() -> None:
    proto = hidden("h = Relu(a)", opset=6)
    reason = "the model is of opset 6; onnxdpp needs at least 7 (onnx.version_converter can raise it)"
    assert refused(proto) == dict.fromkeys(["fc1", "fc2"], reason)


def test_opset_7_is_taken() -> None:
    assert_sound(hidden("h = Relu(a)", opset=7), X, tolerance=1e-5)


def test_dequantized_weight_is_refused() -> None:
    proto = hidden(
        "h = Relu(a)   V = DequantizeLinear(Q, scale)   [fc3] z = MatMul(x, V)",
        Q=np.ones((4, 5), np.int8),
        scale=np.float32(0.1),
    )
    reason = "its weight is not constant: 'V' comes out of DequantizeLinear: prune before you quantize"
    assert refused(proto)["fc3"] == reason


def test_quantized_operator_is_refused() -> None:
    proto = model("g (uint8[N, 4] x) => (int32[N, 2] y) { [q] y = MatMulInteger(x, Q) }", Q=np.ones((4, 2), np.uint8))
    assert refused(proto) == {"q": "MatMulInteger is quantized: prune before you quantize"}


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_operator_is_refused(operator: str, gates: int) -> None:
    proto = model(
        f"g (float[T, N, 4] x) => (float[T, 1, N, 3] y) {{ [r] y = {operator} <hidden_size = 3> (x, W, R) }}",
        W=(1, 3 * gates, 4),
        R=(1, 3 * gates, 3),
    )
    assert refused(proto) == {"r": f"{operator} is recurrent: its gates share one weight"}


def test_convolution_whose_output_is_the_graphs_is_refused() -> None:
    proto = model("g (float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y) { [c] y = Conv(x, W) }", W=(2, 3, 3, 3))
    assert refused(proto) == {"c": "its value 'y' is a graph output"}


def test_model_local_function_is_refused() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            [fc1] a = MatMul(x, W1)   [call] h = local.act(a)   [fc2] y = MatMul(h, W2)
        }""",
        imports={"local": 1},
        functions='<domain: "local", opset_import: ["": 17]> act (p) => (q) { q = Relu(p) }',
        W1=(4, 5),
        W2=(5, 3),
    )
    assert refused(proto)["call"] == "the model-local function 'act' is not looked into"
    assert refused(proto)["fc1"] == "local::act 'call' is a model-local function"


def test_layers_in_a_body_are_refused() -> None:
    proto = model(
        """g (float[N, 4] x, bool c) => (float[N, 5] y) {
            [choose] y = If (c) <
                then_branch = yes () => (float[N, 5] t) { t = MatMul(x, A) },
                else_branch = no () => (float[N, 5] e) { u = MatMul(x, A)  e = Relu(u) }
            >
        }""",
        A=(4, 5),
    )
    assert refused(proto) == {"choose": "2 layers lie in the body of If, which is not looked into"}


def test_nan_in_a_weight_is_an_error_that_names_it() -> None:
    weight = normal(5, 3)
    weight[2, 1], weight[3, 0] = np.nan, np.inf
    with pytest.raises(ModelError, match=r"Initializer 'W3' holds 1 NaN among 15 entries"):
        find_layers(graph_of(mlp(W3=weight)))


def test_infinite_constant_in_between_is_no_error() -> None:
    proto = hidden("h = Max(a, c)", c=np.float32([-np.inf, 0, 0, 0, -np.inf]))
    assert_sound(proto, X, tolerance=1e-5)


# Names


def renamed(*names: str) -> ModelProto:
    """`mlp` with other names of its Gemms."""
    proto = mlp()
    for part, name in zip([node for node in proto.graph.node if node.op_type == "Gemm"], names, strict=True):
        part.name = name
    return proto


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("", "", ""), ["W1", "W2", "W3"]),
        (("fc", "fc", "fc"), ["fc", "fc#2", "fc#3"]),
        (("W2", "", ""), ["W2", "W2#2", "W3"]),
        (("fc", "fc#2", "fc"), ["fc", "fc#2", "fc#3"]),
        (("fc", "fc", "fc#2"), ["fc", "fc#3", "fc#2"]),
    ],
)
def test_names_are_unique(given: tuple[str, ...], expected: list[str]) -> None:
    layers, refusals = find_layers(graph_of(renamed(*given)))
    assert [layer.name for layer in layers] + [refusal.name for refusal in refusals] == expected


def test_neurons_and_edges_go_by_the_same_names() -> None:
    graph = graph_of(renamed("fc", "fc", "fc"))
    layers, refusals = find_layers(graph)
    names = [layer.name for layer in layers] + [refusal.name for refusal in refusals]
    assert [part.name for part in find_projections(graph)[0]] == names


def test_model_without_nodes_has_no_layers() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 4] x) { }")
    assert find_layers(Graph(proto)) == ([], [])


def test_dropping_all_but_one_neuron() -> None:
    graph = graph_of(mlp())
    layer = find_layers(graph)[0][0]
    assert max(oracle_a(graph, layer, X, np.array([3])).values()) <= 1e-5


def test_keeping_every_neuron_changes_nothing() -> None:
    graph = graph_of(mlp())
    for layer in find_layers(graph)[0]:
        same = dropped(graph, layer, np.arange(layer.n))
        np.testing.assert_array_equal(run(same, X)[0], run(graph.model, X)[0])
