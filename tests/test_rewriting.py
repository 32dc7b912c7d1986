"""Rewriting: what the edits name changes, as they say; everything else stays as it is, field by field."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import pytest
from models import (
    UNKNOWN,
    Array,
    Weight,
    constant,
    decorated,
    graph_of,
    hidden,
    matmul_add,
    mlp,
    model,
    node,
    normal,
    run,
    shared_vector,
    two_heads,
)
from onnx import ModelProto, TensorProto, helper
from oracles import dropped, gap, oracle_a, oracle_b

from onnxdpp.errors import ModelError
from onnxdpp.graph.biases import with_biases
from onnxdpp.graph.checking import check_model
from onnxdpp.graph.index import Graph, Use
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.projections import Projection, find_projections
from onnxdpp.graph.rewriting import apply, in_order, reweighted, sliced

X = {"x": normal(9, 4)}
KEEP = np.array([1, 2, 4])


def layer_of(graph: Graph, name: str = "fc1") -> Layer:
    return next(layer for layer in find_layers(graph)[0] if layer.name == name)


def projection_of(graph: Graph, name: str) -> Projection:
    return next(part for part in find_projections(graph)[0] if part.name == name)


def pruned(proto: ModelProto, name: str = "fc1", keep: Array = KEEP) -> ModelProto:
    graph = graph_of(proto)
    result = dropped(graph, layer_of(graph, name), keep)
    check_model(result, "the pruned model")
    return result


def without(proto: ModelProto, tensors: Collection[str], values: Collection[str] = ()) -> bytes:
    """The bytes of a model, but for the initializers and the value_info named."""
    rest = ModelProto()
    rest.CopyFrom(proto)
    for tensor in [tensor for tensor in rest.graph.initializer if tensor.name in tensors]:
        rest.graph.initializer.remove(tensor)
    for value in [value for value in rest.graph.value_info if value.name in values]:
        rest.graph.value_info.remove(value)
    return rest.SerializeToString(deterministic=True)


def inferred(proto: ModelProto) -> ModelProto:
    """The model with the shapes of all its values in value_info."""
    return onnx.shape_inference.infer_shapes(proto)


def value_info(proto: ModelProto) -> set[str]:
    return {value.name for value in proto.graph.value_info}


def initializers(proto: ModelProto) -> list[str]:
    return [tensor.name for tensor in proto.graph.initializer]


def shape_of_input(proto: ModelProto, name: str) -> list[int]:
    value = next(value for value in proto.graph.input if value.name == name)
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


# Slices


def test_slices_go_into_producer_follower_and_consumer() -> None:
    proto = mlp()
    result = pruned(proto)
    np.testing.assert_array_equal(constant(result, "W1"), constant(proto, "W1")[:, KEEP])
    np.testing.assert_array_equal(constant(result, "b1"), constant(proto, "b1")[KEEP])
    np.testing.assert_array_equal(constant(result, "W2"), constant(proto, "W2")[KEEP])


def test_slices_of_two_layers_meet_in_one_weight() -> None:
    proto = mlp()
    graph = graph_of(proto)
    first, second = find_layers(graph)[0]
    edits = sliced(graph, sliced(graph, {}, first, KEEP), second, np.array([0, 3]))
    result = apply(graph, edits, first.changed | second.changed)
    np.testing.assert_array_equal(constant(result, "W2"), constant(proto, "W2")[KEEP][:, [0, 3]])


def test_order_of_the_slices_does_not_matter() -> None:
    graph = graph_of(mlp())
    first, second = find_layers(graph)[0]
    other = np.array([0, 3])
    forwards = sliced(graph, sliced(graph, {}, first, KEEP), second, other)
    backwards = sliced(graph, sliced(graph, {}, second, other), first, KEEP)
    assert apply(graph, forwards) == apply(graph, backwards)


def test_sliced_leaves_the_edits_it_is_given_alone() -> None:
    graph = graph_of(mlp())
    edits: dict[Use, Array] = {}
    sliced(graph, edits, layer_of(graph), KEEP)
    assert edits == {}


def test_apply_leaves_the_model_it_is_given_alone() -> None:
    proto = decorated()
    before = proto.SerializeToString(deterministic=True)
    pruned(proto)
    assert proto.SerializeToString(deterministic=True) == before


# Nothing else changes


def test_nothing_but_the_slices_changes() -> None:
    proto = decorated()
    named = {"W1", "b1", "W2"}, {"a", "h"}
    assert without(pruned(proto), *named) == without(proto, *named)


def test_no_edits_change_no_byte() -> None:
    proto = decorated()
    assert apply(graph_of(proto), {}).SerializeToString() == proto.SerializeToString()


def test_decorated_model_answers_after_pruning() -> None:
    graph = graph_of(decorated())
    for layer in find_layers(graph)[0]:
        assert max(oracle_a(graph, layer, X, KEEP).values()) <= 1e-5


def test_edited_tensor_keeps_its_name_place_type_and_doc_string() -> None:
    proto = decorated()
    result = pruned(proto)
    before, after = ([(t.name, t.data_type, t.doc_string) for t in part.graph.initializer] for part in (proto, result))
    assert before == after


def test_unknown_fields_of_an_edited_tensor_survive() -> None:
    tensor = next(tensor for tensor in pruned(decorated()).graph.initializer if tensor.name == "W1")
    assert UNKNOWN in tensor.SerializeToString()


@pytest.mark.parametrize("name", ["functions", "training_info", "metadata_props", "opset_import"])
def test_field_of_the_model_survives(name: str) -> None:
    proto = decorated()
    assert list(getattr(pruned(proto), name)) == list(getattr(proto, name)) != []


@pytest.mark.parametrize("name", ["sparse_initializer", "quantization_annotation", "metadata_props", "node"])
def test_field_of_the_graph_survives(name: str) -> None:
    proto = decorated()
    assert list(getattr(pruned(proto).graph, name)) == list(getattr(proto.graph, name)) != []


def test_unused_initializer_of_the_user_survives() -> None:
    assert "nobody_reads_this" in initializers(pruned(decorated()))


# What the file says of shapes


def test_value_info_of_changed_values_goes_and_the_rest_stays() -> None:
    proto = inferred(mlp())
    assert value_info(proto) == {"a", "h", "c", "k"}
    assert value_info(pruned(proto)) == {"c", "k"}


def test_value_info_of_an_edited_initializer_goes() -> None:
    proto = mlp()
    for name, shape in (("W1", [4, 6]), ("W3", [5, 3])):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert value_info(pruned(proto)) == {"W3"}


def test_value_info_stays_where_only_weights_change() -> None:
    graph = graph_of(inferred(mlp()))
    part = projection_of(graph, "fc2")
    result = apply(graph, reweighted(graph, part, np.ones((6, 5)), None))
    assert value_info(result) == {"a", "h", "c", "k"}


def test_inputs_are_patched_before_ir_version_4() -> None:
    result = pruned(mlp(ir_version=3))
    assert [shape_of_input(result, name) for name in ("W1", "b1", "W2", "W3")] == [[4, 3], [3], [3, 5], [5, 3]]


def test_inputs_come_in_the_same_order_before_ir_version_4() -> None:
    proto = mlp(ir_version=3)
    assert [value.name for value in pruned(proto).graph.input] == [value.name for value in proto.graph.input]


# Shared vectors, Constant nodes, types


def test_shared_vector_is_copied_for_the_reader_that_changes() -> None:
    proto = shared_vector()
    result = pruned(proto)
    np.testing.assert_array_equal(constant(result, "b"), constant(proto, "b"))
    np.testing.assert_array_equal(constant(result, node(result, "fc1").input[2]), constant(proto, "b")[KEEP])
    assert [node(result, name).input[2] for name in ("fc2", "fc3")] == ["b", "b"]


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_shared_vector_is_not_corrupted(name: str) -> None:
    graph = graph_of(shared_vector())
    assert oracle_a(graph, layer_of(graph, name), X, KEEP)["y"] <= 1e-5


def test_vector_that_lost_all_its_readers_goes() -> None:
    proto = hidden("d = Mul(a, c)   h = Add(d, c)", c=(5,))
    result = pruned(proto)
    assert "c" not in initializers(result)
    assert len(initializers(result)) == 4


def test_vector_read_twice_by_one_node() -> None:
    graph = graph_of(hidden("p = Greater(a, zero)   q = Where(p, c, c)   h = Mul(a, q)", c=(5,), zero=np.float32(0)))
    layer = layer_of(graph)
    assert len(layer.followers) == 2
    assert oracle_a(graph, layer, X, KEEP)["y"] <= 1e-5


def test_vector_that_is_a_graph_output_stays() -> None:
    proto = mlp()
    proto.graph.output.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [6]))
    result = pruned(proto)
    np.testing.assert_array_equal(run(result, X)[1], constant(proto, "b1"))


def test_vector_that_a_body_captures_stays() -> None:
    proto = mlp()
    branches = onnx.parser.parse_graph(
        """g (float[N, 4] x) => (float[6] z) {
            z = If (on) <
                then_branch = yes () => (float[6] t) { t = Identity(b1) },
                else_branch = no () => (float[6] e) { e = Neg(b1) }
            >
        }"""
    )
    proto.graph.node.extend(branches.node)
    proto.graph.output.extend(branches.output)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.bool_(False), "on"))
    np.testing.assert_array_equal(run(pruned(proto), X)[1], -constant(proto, "b1"))


CONSTANTS = """g (float[N, 4] x) => (float[N, 1] y) {
    W1 = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
    b1 = Constant <value_floats = [0.5, -0.5]> ()
    W2 = Constant <value = float[2, 1] {1, -1}> ()
    [fc1] a = Gemm(x, W1, b1)   h = Relu(a)   [fc2] y = MatMul(h, W2)
}"""


def test_constant_nodes_stay_constant_nodes() -> None:
    result = pruned(model(CONSTANTS), keep=np.array([1]))
    assert [part.op_type for part in result.graph.node[:3]] == ["Constant"] * 3
    assert initializers(result) == []


def test_constant_nodes_hold_the_slices() -> None:
    result = pruned(model(CONSTANTS), keep=np.array([1]))
    assert constant(result, "W1").tolist() == [[2], [4], [6], [8]]
    assert constant(result, "b1").tolist() == [-0.5]
    assert constant(result, "W2").tolist() == [[-1]]


def test_constant_node_that_another_node_reads_too() -> None:
    proto = model(
        """g (float[N, 4] x) => (float[N, 1] y, float[2] z) {
            b1 = Constant <value_floats = [0.5, -0.5]> ()
            [fc1] a = Gemm(x, W1, b1)   h = Relu(a)   [fc2] y = MatMul(h, W2)   z = Neg(b1)
        }""",
        W1=(4, 2),
        W2=(2, 1),
    )
    np.testing.assert_array_equal(run(pruned(proto, keep=np.array([1])), X)[1], [-0.5, 0.5])


@pytest.mark.parametrize("field", ["raw", "typed"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
def test_slices_of_any_float_type_and_storage(kind: int, field: str) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    name = {TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float", TensorProto.DOUBLE: "double"}[kind]
    proto = model(
        f"g ({name}[N, 4] x) => ({name}[N, 3] y) {{ [fc1] a = MatMul(x, W1)   [fc2] y = MatMul(a, W2) }}",
        dtype=dtype,
        W1=(4, 5),
        W2=(5, 3),
    )
    before = constant(proto, "W1")
    if field == "typed":
        tensor = helper.make_tensor("W1", kind, before.shape, before.ravel())
        assert not tensor.raw_data
        proto.graph.initializer[0].CopyFrom(tensor)
    after = constant(pruned(proto), "W1")
    assert after.dtype == dtype
    np.testing.assert_array_equal(after, before[:, KEEP])


# Order of the nodes


def unsorted(proto: ModelProto) -> ModelProto:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def test_nodes_are_sorted_in_a_copy() -> None:
    proto = unsorted(mlp())
    ordered = in_order(proto)
    assert [part.output[0] for part in ordered.graph.node] == ["a", "h", "c", "k", "y"]
    assert [part.output[0] for part in proto.graph.node] == ["y", "k", "c", "h", "a"]


def test_sorting_changes_nothing_but_the_order() -> None:
    assert in_order(unsorted(unsorted(decorated()))).SerializeToString() == decorated().SerializeToString()
    ordered = in_order(unsorted(decorated()))
    assert sorted(part.SerializeToString() for part in ordered.graph.node) == sorted(
        part.SerializeToString() for part in decorated().graph.node
    )
    del ordered.graph.node[:]
    rest = decorated()
    del rest.graph.node[:]
    assert ordered.SerializeToString() == rest.SerializeToString()


def test_sorted_model_is_given_back_as_it_is() -> None:
    proto = mlp()
    assert in_order(proto) is proto


def test_unsorted_model_is_pruned_like_the_sorted_one() -> None:
    assert pruned(in_order(unsorted(mlp()))).SerializeToString() == pruned(mlp()).SerializeToString()


# New weights


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [("", (4, 5)), ("<transB = 1>", (5, 4)), ("<alpha = 0.25>", (4, 5)), ("<alpha = -4.0, transB = 1>", (5, 4))],
)
def test_new_weights_act_as_given(attributes: str, shape: tuple[int, ...]) -> None:
    graph = graph_of(model(f"g (float[N, 4] x) => (float[N, 5] y) {{ [fc1] y = Gemm {attributes} (x, W1) }}", W1=shape))
    weights = normal(4, 5, seed=3, dtype=np.float64)
    result = apply(graph, reweighted(graph, projection_of(graph, "fc1"), weights, None))
    np.testing.assert_allclose(run(result, X)[0], X["x"] @ weights, rtol=0, atol=1e-5)


def test_masked_weights_have_no_bits_behind_a_negative_alpha() -> None:
    """A -0.0 would be kept, as every bit is, when the weights are packed."""
    graph = graph_of(model("g (float[N, 4] x) => (float[N, 5] y) { [fc1] y = Gemm<alpha = -2.0>(x, W1) }", W1=(4, 5)))
    result = apply(graph, reweighted(graph, projection_of(graph, "fc1"), np.zeros((4, 5)), None))
    assert constant(result, "W1").tobytes() == bytes(4 * 4 * 5)


@pytest.mark.parametrize("attributes", ["<alpha = 0.1>", "<alpha = -3.0, transB = 1>"])
def test_weights_that_act_already_keep_every_bit(attributes: str) -> None:
    """Also where multiplying and dividing by alpha would not."""
    proto = model(
        f"g (double[N, 9] x) => (double[N, 9] y) {{ [fc1] y = Gemm {attributes} (x, W1) }}", dtype=np.float64, W1=(9, 9)
    )
    graph = graph_of(proto)
    part = projection_of(graph, "fc1")
    same = reweighted(graph, part, part.effective(constant(proto, "W1")), None)
    assert apply(graph, same).SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize(
    "body",
    [
        "[fc1] y = Gemm(x, W1, b1)",
        "[fc1] y = Gemm <beta = 0.5> (x, W1, b1)",
        "[fc1] p = MatMul(x, W1)   y = Add(p, b1)",
        "[fc1] p = MatMul(x, W1)   y = Add(b1, p)",
        "[fc1] p = MatMul(x, W1)   y = Sub(p, b1)",
    ],
)
def test_intercept_is_added_to_the_product(body: str) -> None:
    proto = model(f"g (float[N, 4] x) => (float[N, 5] y) {{ {body} }}", W1=(4, 5), b1=(5,))
    graph = graph_of(proto)
    part = projection_of(graph, "fc1")
    intercept = normal(5, seed=3, dtype=np.float64)
    edits = reweighted(graph, part, part.effective(constant(proto, "W1")), intercept)
    np.testing.assert_allclose(run(apply(graph, edits), X)[0], run(proto, X)[0] + intercept, rtol=0, atol=1e-5)


def test_intercept_of_a_product_that_is_subtracted() -> None:
    proto = model(
        "g (float[N, 4] x) => (float[N, 5] y) { [fc1] p = MatMul(x, W1)   y = Sub(b1, p) }", W1=(4, 5), b1=(5,)
    )
    graph = graph_of(proto)
    part = projection_of(graph, "fc1")
    intercept = normal(5, seed=3, dtype=np.float64)
    edits = reweighted(graph, part, part.effective(constant(proto, "W1")), intercept)
    np.testing.assert_allclose(run(apply(graph, edits), X)[0], run(proto, X)[0] - intercept, rtol=0, atol=1e-5)


def test_intercept_without_a_bias_is_a_mistake_of_the_caller() -> None:
    graph = graph_of(hidden("h = Relu(a)"))
    with pytest.raises(ValueError, match="'fc2' has no bias to hold an intercept"):
        reweighted(graph, projection_of(graph, "fc2"), np.ones((5, 3)), np.ones(3))


def test_intercept_in_a_shared_vector_is_the_edited_readers_alone() -> None:
    proto = shared_vector()
    graph = graph_of(proto)
    part = projection_of(graph, "fc3")
    edits = reweighted(graph, part, part.effective(constant(proto, "W3")), np.ones(5))
    np.testing.assert_allclose(run(apply(graph, edits), X)[0], run(proto, X)[0] + 1, rtol=0, atol=1e-5)


def test_weights_too_large_for_their_type_are_an_error() -> None:
    proto = model("g (float16[N, 4] x) => (float16[N, 2] y) { [fc1] y = MatMul(x, W1) }", dtype=np.float16, W1=(4, 2))
    graph = graph_of(proto)
    with pytest.raises(ModelError, match="'fc1' do not fit into float16"):
        reweighted(graph, projection_of(graph, "fc1"), np.full((4, 2), 1e6), None)


# Biases for intercepts


def biased(proto: ModelProto) -> ModelProto:
    """The model after `with_biases` for all its projections, which must leave its answers as they are."""
    graph = graph_of(proto)
    result = with_biases(graph, find_projections(graph)[0])
    check_model(result, "the model with biases")
    return result


def projected(body: str, **weights: Weight) -> ModelProto:
    """One projection, fc1. Layers: none."""
    return model(
        f"g (float[N, 4] x, float[5] d) => (float[N, 5] y) {{ {body} }}", **{"W1": (4, 5), "c": (5,), **weights}
    )


FEEDS = X | {"d": normal(5, seed=4)}

BODIES = [
    "[fc1] y = Gemm(x, W1)",
    "[fc1] y = Gemm <beta = 3.0> (x, W1)",
    "[fc1] y = Gemm <beta = 0.0> (x, W1, c)",
    "[fc1] y = Gemm <beta = 0.0> (x, W1, d)",
    "[fc1] y = Gemm <alpha = 0.5, beta = 2.0> (x, W1, c)",
    "[fc1] y = Gemm(x, W1, d)",
    "[fc1] y = MatMul(x, W1)",
    "[fc1] p = MatMul(x, W1)   y = Add(p, c)",
    "[fc1] p = MatMul(x, W1)   y = Add(p, d)",
    "[fc1] p = MatMul(x, W1)   y = Sub(c, p)",
    "[fc1] p = MatMul(x, W1)   q = Relu(p)   y = Add(p, q)",
    "c2 = Constant <value_float = 0.5> ()   [fc1] p = MatMul(x, W1)   y = Add(p, c2)",
]


@pytest.mark.parametrize("body", BODIES)
def test_biases_change_no_answer(body: str) -> None:
    proto = projected(body)
    np.testing.assert_array_equal(run(biased(proto), FEEDS)[0], run(proto, FEEDS)[0])


@pytest.mark.parametrize("body", BODIES)
def test_each_projection_can_hold_an_intercept_then(body: str) -> None:
    graph = graph_of(biased(projected(body)))
    bias = projection_of(graph, "fc1").bias
    assert bias is not None
    constant = graph.array(graph.name_at(bias.use))
    assert constant is not None
    assert constant.shape[-1] == 5


@pytest.mark.parametrize("body", [body for body in BODIES if "MatMul(x, W1)   q" not in body and "Sub" not in body])
def test_intercept_acts_after_a_bias_was_made(body: str) -> None:
    proto = projected(body)
    graph = graph_of(biased(proto))
    part = projection_of(graph, "fc1")
    weights = graph.array(graph.name_at(part.weight))
    edits = reweighted(graph, part, part.effective(weights), np.arange(5.0))
    gaps = run(apply(graph, edits), FEEDS)[0] - run(proto, FEEDS)[0]
    np.testing.assert_allclose(gaps, np.broadcast_to(np.arange(5), gaps.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("[fc1] y = Gemm(x, W1)", ["Gemm"]),
        ("[fc1] y = Gemm <beta = 0.0> (x, W1, c)", ["Gemm"]),
        ("[fc1] y = Gemm(x, W1, d)", ["Gemm", "Add"]),
        ("[fc1] y = MatMul(x, W1)", ["MatMul", "Add"]),
        ("[fc1] p = MatMul(x, W1)   y = Add(p, c)", ["MatMul", "Add"]),
    ],
)
def test_biases_add_no_node_where_none_is_needed(body: str, operators: Sequence[str]) -> None:
    assert [part.op_type for part in biased(projected(body)).graph.node] == operators


def test_bias_scaled_to_nothing_goes_when_a_real_one_comes() -> None:
    assert initializers(biased(projected("[fc1] y = Gemm <beta = 0.0> (x, W1, c)"))) == ["W1", "W1_bias"]


def test_model_with_biases_everywhere_keeps_every_byte() -> None:
    proto = decorated()
    assert biased(proto).SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_bias_of_one_entry_is_spread(shape: tuple[int, ...]) -> None:
    proto = mlp(b2=shape)
    np.testing.assert_array_equal(constant(biased(proto), "b2").ravel(), np.repeat(constant(proto, "b2").ravel(), 5))


def test_scalar_that_a_bias_shares_with_another_node_is_copied() -> None:
    proto = model(
        "g (float[N, 4] x) => (float[N, 5] y) { p = Mul(x, s)   [fc1] q = MatMul(p, W1)   y = Add(q, s) }",
        s=np.float32(0.5),
        W1=(4, 5),
    )
    result = biased(proto)
    assert constant(result, "s").shape == ()
    np.testing.assert_array_equal(run(result, X)[0], run(proto, X)[0])


def test_biases_are_listed_as_inputs_before_ir_version_4() -> None:
    proto = model("g (float[N, 4] x) => (float[N, 5] y) { [fc1] y = MatMul(x, W1) }", ir_version=3, W1=(4, 5))
    assert shape_of_input(biased(proto), "W1_bias") == [5]


def test_biases_of_float16() -> None:
    proto = model("g (float16[N, 4] x) => (float16[N, 5] y) { [fc1] y = MatMul(x, W1) }", dtype=np.float16, W1=(4, 5))
    assert constant(biased(proto), "W1_bias").dtype == np.float16


def test_biased_model_has_the_same_layers() -> None:
    for make in (mlp, matmul_add, two_heads):
        before, after = (find_layers(graph_of(proto)) for proto in (make(), biased(make())))
        assert [(layer.name, layer.n) for layer in before[0]] == [(layer.name, layer.n) for layer in after[0]]
        assert before[1] == after[1]


def test_names_that_the_model_uses_already_are_not_used_again() -> None:
    """Our own names, as node, value, initializer and inside a body."""
    proto = model(
        """g (float[N, 4] x, bool c) => (float[N, 3] y, float[N, 3] z) {
            [fc1] a = MatMul(x, W1)   h = Relu(a)   [fc2] y = MatMul(h, W2)
            [fc2_add] y_before_bias = MatMul(x, W2_bias)
            z = If (c) <
                then_branch = yes () => (float[N, 3] W1_bias) { W1_bias = Identity(y_before_bias) },
                else_branch = no () => (float[N, 3] a_before_bias) { a_before_bias = Neg(y_before_bias) }
            >
        }""",
        W1=(4, 5), W2=(5, 3), W2_bias=(4, 3),
    )  # fmt: skip
    graph = graph_of(proto)
    wanted = [part for part in find_projections(graph)[0] if part.name in ("fc1", "fc2")]
    result = with_biases(graph, wanted)
    check_model(result, "the model with biases")
    feeds = X | {"c": np.array(True)}
    for old, new in zip(run(proto, feeds), run(result, feeds), strict=True):
        np.testing.assert_array_equal(new, old)


def test_copy_of_a_shared_vector_takes_a_name_of_its_own() -> None:
    proto = shared_vector()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1]), "b_0"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1]), "b_0_2"))
    result = pruned(proto)
    assert len(set(initializers(result))) == len(initializers(result))
    assert oracle_a(graph_of(proto), layer_of(graph_of(proto)), X, KEEP)["y"] <= 1e-5


def test_nodes_stay_sorted_where_an_add_comes_in() -> None:
    graph = graph_of(biased(projected("[fc1] y = MatMul(x, W1)")))
    for index, part in enumerate(graph.nodes):
        assert all(graph.producer.get(name, -1) < index for name in part.input)


def test_pruning_twice_is_pruning_once() -> None:
    graph = graph_of(mlp())
    once = dropped(graph, layer_of(graph), KEEP)
    again = graph_of(once)
    same = dropped(again, layer_of(again), np.arange(3))
    assert gap(run(once, X)[0], run(same, X)[0]) == 0
    assert max(oracle_b(again, layer_of(again), X, np.array([2, 0, 1])).values()) <= 1e-5
