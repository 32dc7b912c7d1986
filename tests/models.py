"""Small ONNX models for tests, written as ONNX text, and running them.

The text says the graph; weights are given beside it, as a shape (drawn from the seed) or as an array. Each model
names its layers in its docstring: ``name (neurons)``.
"""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper, parser

from onnxdpp.graph.checking import check_model
from onnxdpp.graph.index import Graph

onnxruntime.set_default_logger_severity(4)

SHARED_MODELS = Path(__file__).parents[2] / "shared" / "models"

NO_MODELS = f"no real models: {SHARED_MODELS} does not exist"

Array = NDArray[Any]
Weight = tuple[int, ...] | Array


def manifest() -> list[dict[str, str]]:
    """What is known of each real model; nothing where the folder is absent."""
    table = SHARED_MODELS / "manifest.csv"
    return list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))) if table.exists() else []


def model(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    imports: Mapping[str, int] | None = None,
    dtype: type = np.float32,
    seed: int = 0,
    functions: str = "",
    **weights: Weight,
) -> ModelProto:
    """A model from the text of its graph, ``g (float[N, 4] x) => (float[N, 2] y) { ... }``.

    Parameters
    ----------
    imports : mapping, optional
        Versions of further domains.
    dtype : float type
        Of the weights that are drawn.
    functions : str
        Model-local functions, as ONNX text.
    **weights
        Initializers: a shape (standard normal entries) or an array.
    """
    domains = ", ".join(f'"{name}": {version}' for name, version in {"": opset, **(imports or {})}.items())
    proto = parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{domains}]> {text} {functions}")
    rng = np.random.default_rng(seed)
    for name, weight in weights.items():
        array = rng.standard_normal(weight).astype(dtype) if isinstance(weight, tuple) else weight
        tensor = numpy_helper.from_array(np.asarray(array), name)
        proto.graph.initializer.append(tensor)
        if ir_version < 4:
            proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return proto


def run(proto: ModelProto, feeds: Mapping[str, Array]) -> list[Any]:
    """All outputs of a model, by onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def normal(*shape: int, seed: int = 1, dtype: type = np.float32) -> Array:
    """Standard normal rows."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def graph_of(proto: ModelProto) -> Graph:
    """The use-def index of a model that is sound."""
    check_model(proto, "the test model")
    return Graph(proto)


def node(proto: ModelProto, name: str) -> NodeProto:
    """The node called `name`."""
    return next(node for node in proto.graph.node if node.name == name)


def constant(proto: ModelProto, name: str) -> Array:
    """Value of the initializer or Constant node `name`."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    maker = next(node for node in proto.graph.node if name in node.output)
    return numpy_helper.to_array(maker.attribute[0].t)


def mlp(**options: Any) -> ModelProto:
    """Gemm, Relu, Gemm, Tanh, Gemm. Layers: fc1 (6), fc2 (5)."""
    return model(
        """g (float[N, 4] x) => (float[N, 3] y) {
            [fc1] a = Gemm(x, W1, b1)
            h = Relu(a)
            [fc2] c = Gemm(h, W2, b2)
            k = Tanh(c)
            [fc3] y = Gemm(k, W3, b3)
        }""",
        **{"W1": (4, 6), "b1": (6,), "W2": (6, 5), "b2": (5,), "W3": (5, 3), "b3": (3,), **options},
    )


def hidden(body: str, *, opset: int = 17, **weights: Weight) -> ModelProto:
    """A MatMul, `body` from value a to value h, a MatMul. Layers: fc1 (5)."""
    return model(
        f"""g (float[N, 4] x) => (float[N, 3] y) {{
            [fc1] a = MatMul(x, W1)
            {body}
            [fc2] y = MatMul(h, W2)
        }}""",
        opset=opset,
        **{"W1": (4, 5), "W2": (5, 3), **weights},
    )


def matmul_add(**options: Any) -> ModelProto:
    """MatMul and Add, on three axes. Layers: fc1 (6)."""
    return model(
        """g (float[N, T, 4] x) => (float[N, T, 3] y) {
            [fc1] p = MatMul(x, W1)
            a = Add(b1, p)
            h = Relu(a)
            [fc2] q = MatMul(h, W2)
            y = Add(q, b2)
        }""",
        **{"W1": (4, 6), "b1": (6,), "W2": (6, 3), "b2": (3,), **options},
    )


def two_heads(**options: Any) -> ModelProto:
    """One hidden value, two heads that read different values made of it. Layers: fc1 (6)."""
    return model(
        """g (float[N, 4] x) => (float[N, 3] y, float[N, 2] z) {
            [fc1] a = Gemm(x, W1, b1)
            h = Relu(a)
            t = Tanh(a)
            [head1] y = Gemm(h, W2, b2)
            [head2] z = Gemm <transB = 1> (t, W3)
        }""",
        **{"W1": (4, 6), "b1": (6,), "W2": (6, 3), "b2": (3,), "W3": (2, 6), **options},
    )


def shared_vector(**options: Any) -> ModelProto:
    """A bias that two layers and an output's bias read. Layers: fc1 (5), fc2 (5)."""
    return model(
        """g (float[N, 4] x) => (float[N, 5] y) {
            [fc1] a = Gemm(x, W1, b)
            h = Relu(a)
            [fc2] c = Gemm(h, W2, b)
            k = Relu(c)
            [fc3] y = Gemm(k, W3, b)
        }""",
        **{"W1": (4, 5), "b": (5,), "W2": (5, 5), "W3": (5, 5), **options},
    )


def decorated(**options: Any) -> ModelProto:
    """`mlp` with a part that no layer touches, and everything a file may hold beside nodes. Layers: fc1 (6), fc2 (5).

    Doc strings, metadata, value_info, an unused initializer, a sparse initializer, quantization annotations, a
    function, training information, and unknown protobuf fields.
    """
    proto = model(
        """g (float[N, 4] x) => (float[N, 3] y, float[N, 4] u, float[N, 4] v)
        <float[N, 6] a, float[N, 6] h, float[N, 5] c, float[N, 4] s> {
            [fc1] a = Gemm(x, W1, b1)
            h = Relu(a)
            [fc2] c = Gemm(h, W2, b2)
            k = Tanh(c)
            [fc3] y = Gemm(k, W3, b3)
            [side] s = Add(x, sparse)
            [call] u = local.twice(s)
            [by] v = Mul(s, scale)
        }""",
        imports={"local": 1},
        functions="""<domain: "local", opset_import: ["": 17]> twice (p) => (q) { q = Add(p, p) }""",
        **{"W1": (4, 6), "b1": (6,), "W2": (6, 5), "b2": (5,), "W3": (5, 3), "b3": (3,), **options},
    )
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(np.float32([1, 2, 3, 4]), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.float32([7]), "nobody_reads_this"))
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5]), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([2]), "sparse_indices"))
    sparse.dims.extend([4])
    proto.producer_name, proto.producer_version, proto.model_version = "exporter", "1.2", 3
    proto.doc_string, graph.doc_string = "of the model", "of the graph"
    proto.metadata_props.add(key="author", value="somebody")
    graph.metadata_props.add(key="author", value="somebody else")
    for part in graph.node:
        part.doc_string = f"of {part.output[0]}"
        part.metadata_props.add(key="from", value=part.output[0])
    for tensor in graph.initializer:
        tensor.doc_string = f"of {tensor.name}"
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    training = proto.training_info.add()
    training.algorithm.name = "training"
    training.algorithm.initializer.append(numpy_helper.from_array(np.float32([0.5]), "rate"))
    for message in (proto, graph, *graph.node, *graph.initializer, graph.input[0]):
        add_unknown_field(message)
    return proto


UNKNOWN = bytes([0xC2, 0xBB, 0x01, 0x03]) + b"new"
"""Field number 3000, a string: nothing that this version of ONNX knows."""


def add_unknown_field(message: Any) -> None:
    """Give a protobuf message a field that its definition does not have, as a later version of ONNX may."""
    message.MergeFromString(UNKNOWN)
