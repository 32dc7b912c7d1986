"""Soundness of a model: every flaw is named in one line, and what onnxruntime takes is not refused."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxdpp.errors import ModelError
from onnxdpp.graph.checking import check_model, sorted_nodes

Change = Callable[[onnx.ModelProto], object]


def model_of(body: str, functions: str = "", opsets: str = '"": 17', ir: int = 8) -> onnx.ModelProto:
    """Model from the text of its graph: inputs, outputs, initializers and nodes."""
    return parser.parse_model(f"<ir_version: {ir}, opset_import: [{opsets}]> g {body} {functions}")


def linear() -> onnx.ModelProto:
    """One MatMul (4 to 2)."""
    return model_of(
        "(float[N, 4] x) => (float[N, 2] y) <float[4, 2] W = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, W) }"
    )


def relu_chain(length: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    values = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, ["N"]) for i in (0, length)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def flaw(model: onnx.ModelProto) -> str:
    """Message with which a model is refused: one line that names the model, which stays as it was."""
    before = model.SerializeToString()
    with pytest.raises(ModelError) as caught:
        check_model(model, "the model")
    assert model.SerializeToString() == before
    message = str(caught.value)
    assert message.startswith("Model 'the model': ")
    assert message.endswith(".")
    assert message.isprintable()
    return message.removeprefix("Model 'the model': ")


def weight(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


# Versions and names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.ClearField("graph"), "It holds no graph"),
        (lambda m: m.ClearField("ir_version"), "Its IR version is 0"),
        (lambda m: setattr(m, "ir_version", 99), "Its IR version is 99; the installed onnx"),
        (lambda m: m.ClearField("opset_import"), "It imports no operator set"),
        (lambda m: setattr(m.opset_import[0], "version", 0), "operator set 0"),
        (lambda m: setattr(m.opset_import[0], "version", -5), "operator set -5"),
        (
            lambda m: setattr(m.opset_import[0], "version", 99),
            f"operator set 99; the installed onnx {onnx.__version__} knows 1 to {onnx.defs.onnx_opset_version()}",
        ),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=99), "operator set 99"),
        (lambda m: m.functions.add(domain="f").opset_import.add(version=99), "operator set 99"),
    ],
)
def test_versions_unknown(change: Change, message: str) -> None:
    model = linear()
    change(model)
    assert message in flaw(model)


def test_opset_of_another_domain_is_not_limited() -> None:
    model = linear()
    model.opset_import.add(domain="com.microsoft", version=1000)
    check_model(model, "m")


@pytest.mark.parametrize("name", [b"xxxx", b"yyyy", b"WWWW", b"NNNN", b"gggg", b"nnnn"])
def test_name_not_utf8(name: bytes) -> None:
    text = "gggg (float[NNNN, 4] xxxx) => (float[NNNN, 2] yyyy) <float[4, 2] WWWW = {1, 2, 3, 4, 5, 6, 7, 8}>"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text} {{ [nnnn] yyyy = MatMul(xxxx, WWWW) }}')
    check_model(model, "m")
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(name, b"a\xff\x1bz"))
    assert flaw(broken) == r"The name b'a\xff\x1bz' is not valid UTF-8."


def test_doc_string_not_utf8_is_accepted() -> None:
    model = linear()
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "dddd"
    model.producer_name = "dddd"
    check_model(onnx.ModelProto.FromString(model.SerializeToString().replace(b"dddd", b"d\xff\xffd")), "m")


def test_names_empty_repeated_and_wild_of_nodes_are_accepted() -> None:
    model = model_of("(float[N] x) => (float[N] z) { y = Relu(x)  z = Relu(y) }")
    check_model(model, "m")
    for node in model.graph.node:
        node.name = "\x1b[31m\n::error::|<script>../../evil" + "x" * 1_000_000
    check_model(model, "m")


def test_name_wild_is_escaped_and_cut_in_messages() -> None:
    model = linear()
    model.graph.node[0].name = "\x1b[31m\n" + "x" * 1_000_000
    model.graph.node[0].input[0] = "\x1b[0m" + "y" * 1_000_000
    message = flaw(model)
    assert len(message) < 600
    assert r"'\x1b[31m\nxxx" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.initializer.append(weight(m)), "Initializer 'W' is declared 2 times"),
        (
            lambda m: setattr(m.graph.sparse_initializer.add().values, "name", "W"),
            "Initializer 'W' is declared 2 times",
        ),
        (lambda m: m.graph.output.append(m.graph.output[0]), "Graph output 'y' is declared 2 times"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "Graph input 'x' is declared 2 times"),
    ],
)
def test_name_declared_twice(change: Change, message: str) -> None:
    model = linear()
    change(model)
    assert message in flaw(model)


# Tensors


def test_tensor_initializer_also_input_is_accepted() -> None:
    for size in (4, 4000):  # copied for the checker, and left out
        model = model_of(f"(float[N, {size}] x, float[{size}, 1] W) => (float[N, 1] y) {{ y = MatMul(x, W) }}", ir=3)
        model.graph.initializer.append(numpy_helper.from_array(np.ones((size, 1), np.float32), "W"))
        check_model(model, "m")


def with_raw(model: onnx.ModelProto, content: bytes) -> None:
    weight(model).ClearField("float_data")
    weight(model).raw_data = content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: with_raw(m, bytes(31)), "Initializer 'W' (float, 4x2) needs 32 bytes and has 31"),
        (lambda m: with_raw(m, bytes(33)), "needs 32 bytes and has 33"),
        (lambda m: weight(m).float_data.append(1), "needs 8 entries of float_data and has 9"),
        (lambda m: weight(m).float_data.pop(), "needs 8 entries of float_data and has 7"),
        (lambda m: weight(m).ClearField("float_data"), "needs 8 entries of float_data and has 0"),
        (lambda m: with_raw(m, b""), "needs 8 entries of float_data and has 0"),
        (lambda m: setattr(weight(m), "raw_data", bytes(32)), "more than once: raw_data and float_data"),
        (lambda m: weight(m).int64_data.append(1), "more than once: float_data and int64_data"),
        (lambda m: setattr(weight(m), "data_type", 0), "unknown element type 0"),
        (lambda m: setattr(weight(m), "data_type", 77), "unknown element type 77"),
        (lambda m: setattr(weight(m), "data_type", TensorProto.INT64), "has float_data, where its"),
        (lambda m: setattr(weight(m), "data_type", TensorProto.STRING), "asks for string_data"),
        (lambda m: weight(m).dims.__setitem__(0, -4), "impossible shape -4x2"),
        (lambda m: weight(m).dims.__setitem__(0, 2**40), "needs 2199023255552 entries"),
        (lambda m: weight(m).dims.extend([2**40, 2**40]), "impossible shape 4x2x1099511627776x"),
        (lambda m: weight(m).dims.extend([0, 2**62]), "impossible shape"),
        (lambda m: weight(m).dims.extend([1] * 100_000), "impossible shape"),
        (lambda m: setattr(weight(m), "data_location", TensorProto.EXTERNAL), "is external and holds float"),
    ],
)
def test_tensor_not_as_declared(change: Change, message: str) -> None:
    model = linear()
    change(model)
    found = flaw(model)
    assert message in found
    assert len(found) < 400


def test_tensor_strings_in_raw_data() -> None:
    model = linear()
    with_raw(model, bytes(8))
    weight(model).data_type = TensorProto.STRING
    assert "has raw_data, where its element type asks for string_data" in flaw(model)


def test_tensor_no_elements_needs_no_data() -> None:
    for content in (None, b""):
        model = model_of("(float[N] x) => (float[N] y) <float[0] W> { y = Relu(x) }")
        model.graph.initializer.add(name="E", data_type=TensorProto.FLOAT, dims=[0, 3], raw_data=content)
        check_model(model, "m")


@pytest.mark.parametrize("data_type", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
@pytest.mark.parametrize("raw", [False, True])
def test_tensor_of_each_type_as_onnx_writes_it(data_type: int, raw: bool) -> None:
    if data_type == TensorProto.STRING:
        tensor = helper.make_tensor("T", data_type, [5], [b"\xff", b"", b"a", b"b", b"c"])
    elif raw:
        dtype = helper.tensor_dtype_to_np_dtype(data_type)
        tensor = helper.make_tensor("T", data_type, [5], np.ones(5, dtype), raw=True)
    else:
        tensor = helper.make_tensor("T", data_type, [5], [1] * 5)
    model = model_of("(float[N] x) => (float[N] y) { y = Relu(x) }", opsets='"": 28', ir=14)
    model.graph.initializer.append(tensor)
    check_model(model, "m")
    tensor = weight(model)
    tensor.dims[0] = 13
    assert "needs" in flaw(model)


@pytest.mark.parametrize("place", ["constant", "body", "function", "sparse constant"])
def test_tensor_flawed_anywhere(place: str) -> None:
    constant = "Constant <value = float[2] {1, 2}> ()"
    match place:
        case "constant":
            model = model_of(f"(float[2] x) => (float[2] y) {{ c = {constant}  y = Add(x, c) }}")
            tensor = model.graph.node[0].attribute[0].t
        case "body":
            model = model_of(
                f"(bool b) => (float[2] y) {{ y = If (b) <then_branch = t () => (float[2] c) {{ c = {constant} }}, "
                f"else_branch = e () => (float[2] d) {{ d = {constant} }}> }}"
            )
            tensor = model.graph.node[0].attribute[1].g.node[0].attribute[0].t
        case "function":
            model = model_of(
                "(float[2] x) => (float[2] y) { y = f.f(x) }",
                f'<domain: "f", opset_import: ["": 17]> f (a) => (b) {{ c = {constant}  b = Add(a, c) }}',
                '"": 17, "f": 1',
            )
            tensor = model.functions[0].node[0].attribute[0].t
        case _:
            model = model_of("(float[2] x) => (float[2] y) { y = Add(x, c) }")
            values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1])
            indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
            sparse = helper.make_sparse_tensor(values, indices, [2])
            model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse))
            tensor = model.graph.node[0].attribute[0].sparse_tensor.values
    check_model(model, "m")
    tensor.float_data.append(3)
    assert "Attribute" in (found := flaw(model))
    assert "'Constant' node that writes" in found


def test_tensor_sparse_initializer() -> None:
    model = linear()
    model.graph.ClearField("initializer")
    values = helper.make_tensor("W", TensorProto.FLOAT, [2], [1, 2])
    indices = helper.make_tensor("", TensorProto.INT64, [2], [0, 3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 2]))
    check_model(model, "m")
    indices_out_of_range = onnx.ModelProto.FromString(model.SerializeToString())
    indices_out_of_range.graph.sparse_initializer[0].indices.int64_data[1] = 8
    assert "onnx.checker refuses it" in flaw(indices_out_of_range)
    model.graph.sparse_initializer[0].values.float_data.append(3)
    assert "Values of the sparse initializer 'W'" in flaw(model)


@pytest.mark.parametrize("place", ["initializer", "constant", "body"])
def test_tensor_external_is_not_looked_for(place: str) -> None:
    constant = "Constant <value = float[2] {1, 2}> ()"
    match place:
        case "initializer":
            model = linear()
            tensor = weight(model)
        case "constant":
            model = model_of(f"(float[2] x) => (float[2] y) {{ c = {constant}  y = Add(x, c) }}")
            tensor = model.graph.node[0].attribute[0].t
        case _:
            model = model_of(
                f"(bool b) => (float[2] y) {{ y = If (b) <then_branch = t () => (float[2] c) {{ c = {constant} }}, "
                f"else_branch = e () => (float[2] d) {{ d = {constant} }}> }}"
            )
            tensor = model.graph.node[0].attribute[1].g.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    check_model(model, "m")
    if place == "body":
        tensor.dims[0] = 2**40
        assert "4398046511104 bytes large, and stands in a subgraph" in flaw(model)


def test_tensor_external_shape_is_unknown_to_inference() -> None:
    model = model_of("(float[6] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Reshape(x, s) }")
    tensor = weight(model)
    tensor.ClearField("int64_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    check_model(model, "m")


# Functions


def functions(*calls: str) -> onnx.ModelProto:
    """Functions f0, f1, ... of domain f that have these nodes; the model calls f0."""
    bodies = (
        f'<domain: "f", opset_import: ["": 17, "f": 1]> f{i} (a) => (b) {{ {nodes} }}' for i, nodes in enumerate(calls)
    )
    return model_of("(float[N] x) => (float[N] y) { y = f.f0(x) }", "\n".join(bodies), '"": 17, "f": 1')


def test_functions_nested_are_accepted() -> None:
    check_model(functions("b = f.f1(a)", "c = f.f2(a)  b = f.f2(c)", "b = Relu(a)"), "m")


def test_functions_recursive() -> None:
    assert "call themselves: 'f" in flaw(functions("b = f.f1(a)", "b = f.f0(a)"))
    assert "call themselves: 'f0' > 'f0'" in flaw(functions("b = f.f0(a)"))


def test_functions_recursive_through_a_body() -> None:
    model = functions("b = Relu(a)")
    call = onnx.NodeProto(op_type="f0", domain="f", input=["a"], output=["c"])
    branch = onnx.GraphProto(name="branch", node=[call], output=[onnx.ValueInfoProto(name="c")])
    model.functions[0].node.append(helper.make_node("If", ["a"], ["d"], then_branch=branch, else_branch=branch))
    assert "call themselves" in flaw(model)


def test_functions_recursive_by_another_name_of_the_domain() -> None:
    model = functions("b = f.f0(a)")
    model.functions[0].domain, model.functions[0].node[0].domain = "ai.onnx", ""
    assert "call themselves" in flaw(model)


def test_functions_doubling_are_refused_at_once() -> None:
    doubling = [f"c = f.f{i + 1}(a)  b = f.f{i + 1}(c)" for i in range(28)]
    assert "expand to 805306366 nodes; 100000 is the limit" in flaw(functions(*doubling, "b = Relu(a)"))


def test_functions_doubling_from_within_a_body() -> None:
    model = functions(*[f"c = f.f{i + 1}(a)  b = f.f{i + 1}(c)" for i in range(20)], "b = Relu(a)")
    call = model.graph.node[0].SerializeToString()
    branch = helper.make_graph(
        [onnx.NodeProto.FromString(call)],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    model.graph.node[0].CopyFrom(helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    assert "is the limit" in flaw(model)


# Edges


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("y = Relu(x)  y = Exp(x)", "Value 'y' is written more than once, by the 'Exp' node that writes 'y' too"),
        ("x = Relu(x)  y = Exp(x)", "Value 'x' is written more than once"),
        ("W = Relu(x)  y = Exp(W)", "Value 'W' is written more than once"),
        ("y = Relu(z)", "the 'Relu' node that writes 'y' reads 'z', which nothing writes"),
        ("z = Relu(x)", "Graph output 'y' is written by no node"),
        ("[one] a = Relu(b)  [two] b = Exp(a)  y = Relu(b)", "reads, along a cycle, what it writes itself"),
        ("y = Relu(y)", "the 'Relu' node that writes 'y' reads, along a cycle, what it writes itself"),
    ],
)
def test_edges_impossible(nodes: str, message: str) -> None:
    model = model_of(f"(float[4] x) => (float[4] y) <float[4] W = {{1, 2, 3, 4}}> {{ {nodes} }}")
    assert message in flaw(model)


def test_edges_optional_inputs_and_outputs_may_be_empty() -> None:
    check_model(model_of("(float[N] x) => (float[N] y) { y, = Dropout(x)  z, = Dropout(x) }"), "m")
    check_model(model_of("(float[N] x) => (float[N] y) <float m = {1}> { y = Clip(x, , m) }"), "m")


def test_edges_output_that_is_input_or_initializer_is_accepted() -> None:
    check_model(model_of("(float[4] x) => (float[4] x, float[4] W) <float[4] W = {1,2,3,4}> {}"), "m")


def test_nodes_unsorted_are_accepted_and_left_alone() -> None:
    model = model_of("(float[N] x) => (float[N] z) { z = Exp(y)  y = Relu(x) }")
    before = model.SerializeToString()
    check_model(model, "m")
    assert model.SerializeToString() == before


def test_nodes_unsorted_in_a_body_are_refused_as_by_onnxruntime() -> None:
    model = model_of("""(bool b, float[N] x) => (float[N] y) { y = If (b) <
        then_branch = t () => (float[N] c) { c = Relu(d)  d = Relu(x) },
        else_branch = e () => (float[N] f) { f = Relu(x) }> }""")
    assert "onnx.checker refuses it: Nodes in a graph must be topologically sorted" in flaw(model)


def test_sorted_nodes_sorted_stay() -> None:
    model = model_of("(float[N] x) => (float[N] d) { b = Relu(x)  a = Exp(x)  c = Abs(b)  d = Add(a, c) }")
    assert sorted_nodes(model.graph) == list(model.graph.node)


def test_sorted_nodes_move_only_what_must_move() -> None:
    model = model_of("(float[N] x) => (float[N] d) { a = Exp(x)  d = Add(a, c)  b = Relu(x)  c = Abs(b) }")
    assert [node.op_type for node in sorted_nodes(model.graph)] == ["Exp", "Relu", "Abs", "Add"]


def test_sorted_nodes_capture_counts_as_reading() -> None:
    model = model_of("""(bool b, float[N] x) => (float[N] y) {
        y = If (b) <
            then_branch = t () => (float[N] c) { c = If (b) <
                then_branch = t2 () => (float[N] c2) { c2 = Abs(hidden) },
                else_branch = e2 () => (float[N] d2) { d2 = Abs(x) }> },
            else_branch = e () => (float[N] d) { d = Abs(x) }>
        hidden = Relu(x)
    }""")
    assert [node.op_type for node in sorted_nodes(model.graph)] == ["Relu", "If"]
    check_model(model, "m")
    del model.graph.node[1]
    assert "reads 'hidden', which nothing writes" in flaw(model)


def test_sorted_nodes_own_names_of_a_body_are_no_captures() -> None:
    model = model_of("""(int64 n, bool b, float[4] x) => (float[4] y) {
        y = Loop (n, b, x) <body = t (int64 i, bool go, float[4] v) => (bool go_on, float[4] w)
            <float[4] own = {1, 2, 3, 4}> { go_on = Identity(go)  w = Add(v, own) }>
    }""")
    assert len(sorted_nodes(model.graph)) == 1
    check_model(model, "m")


def test_sorted_nodes_output_of_a_body_may_be_a_capture() -> None:
    model = model_of("""(bool b, float[N] x) => (float[N] y) {
        y = If (b) <then_branch = t () => (float[N] hidden) {},
                    else_branch = e () => (float[N] d) { d = Abs(x) }>
        hidden = Relu(x)
    }""")
    assert [node.op_type for node in sorted_nodes(model.graph)] == ["Relu", "If"]


def test_sorted_nodes_cycle_through_a_body() -> None:
    model = model_of("""(bool b, float[N] x) => (float[N] y) {
        y = If (b) <then_branch = t () => (float[N] c) { c = Abs(hidden) },
                    else_branch = e () => (float[N] d) { d = Abs(x) }>
        hidden = Relu(y)
    }""")
    assert "along a cycle" in flaw(model)


def test_sorted_nodes_long_reversed_chain_is_linear() -> None:
    model = relu_chain(20_000)
    nodes = list(model.graph.node)
    reverse = onnx.GraphProto(input=model.graph.input, output=model.graph.output, node=nodes[::-1])
    assert sorted_nodes(reverse) == nodes


# onnx.checker


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("y = Foo(x)", "No Op registered for Foo with domain_version of 17"),
        ("y = other.Foo(x)", "No opset import for domain 'other'"),
        ("y = Relu(x, x)", "has input size 2 not in range"),
        ("y = MatMul(x, W)", "(op_type:MatMul): [ShapeInferenceError] Incompatible dimensions"),
    ],
)
def test_onnx_checker_is_heard(nodes: str, message: str) -> None:
    model = model_of(f"(float[N, 3] x) => (float[N, 2] y) <float[2, 1] W = {{1, 2}}> {{ {nodes} }}")
    found = flaw(model)
    assert message in found
    assert found.startswith("onnx.checker refuses it: ")
    assert "Context" not in found


@pytest.mark.parametrize("as_constant", [False, True])
def test_onnx_checker_knows_shapes_of_large_weights(as_constant: bool) -> None:
    model = model_of("(float[N, 2000] x) => (float[N, 2] y) { y = MatMul(x, W) }")
    for rows, sound in ((2000, True), (1000, False)):
        tensor = numpy_helper.from_array(np.ones((rows, 2), np.float32), "W")
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if as_constant:
            copy.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=tensor))
        else:
            copy.graph.initializer.append(tensor)
        if sound:
            check_model(copy, "m")
        else:
            assert "Incompatible dimensions" in flaw(copy)


def test_onnx_checker_knows_values_of_shapes() -> None:
    model = model_of("(float[6] x) => (float[2, 3] y) <int64[2] s = {2, 4}> { y = Reshape(x, s) }")
    assert "Reshape" in flaw(model)


def test_weights_absent_from_the_inputs_of_an_old_model_are_accepted() -> None:
    model = linear()
    model.ir_version = 3
    check_model(model, "m")


def test_metadata_repeated_and_training_are_accepted() -> None:
    model = linear()
    model.metadata_props.add(key="a", value="1")
    model.metadata_props.add(key="a", value="2")
    model.training_info.add().algorithm.node.add(op_type="Foo")
    check_model(model, "m")


def test_classifier_with_maps_is_accepted() -> None:
    model = model_of(
        """(float[N, 2] x) => (int64[N] label, seq(map(int64, float)) p) {
            label, scores = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 2.0, 3.0, 4.0],
                intercepts = [0.0, 0.0], classlabels_ints = [0, 1]> (x)
            p = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (scores)
        }""",
        opsets='"": 17, "ai.onnx.ml": 1',
    )
    check_model(model, "m")


def test_ifs_nested_thirty_deep_are_accepted() -> None:
    value = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N"])
    condition = helper.make_tensor_value_info("b", TensorProto.BOOL, [])
    node = helper.make_node("Relu", ["x0"], ["v0"])
    for level in range(30):
        output = helper.make_tensor_value_info(f"v{level}", TensorProto.FLOAT, ["N"])
        other = helper.make_graph([helper.make_node("Relu", ["x0"], [f"w{level}"])], "e", [], [output])
        other.output[0].name = f"w{level}"
        branch = helper.make_graph([node], "t", [], [output])
        node = helper.make_node("If", ["b"], [f"v{level + 1}"], then_branch=branch, else_branch=other)
    output = helper.make_tensor_value_info("v30", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([node], "g", [value, condition], [output])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    check_model(onnx.ModelProto.FromString(model.SerializeToString()), "m")
