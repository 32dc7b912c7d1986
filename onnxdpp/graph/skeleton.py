"""What onnx.checker gets to see: a sorted copy of a model without large weights, documentation and training.

Large, external and sparse weights of the main graph become inputs of the same type and shape. So weights are
not copied, unless they stand in subgraphs or functions; external data need not be there; and sparse weights
have a shape, which onnx's inference does not give them. The copy is also spared what onnxruntime does not
mind: metadata with repeated keys, initializers that an IR version below 4 wants among the graph inputs, the
order of the main graph's nodes.

(An operator of an unknown domain in place of a weight would do in subgraphs too, but from the first such
operator on, onnx's inference reports no errors.)
"""

import math
from collections.abc import Iterable, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.walking import all_tensors, is_external, raw_bytes

_LARGE = 1024  # elements; a smaller tensor may be a shape or an axis that shape inference reads
_MAX_STAND_IN = 2**28  # bytes


def skeleton(model: ModelProto, nodes: Iterable[NodeProto]) -> ModelProto:
    """Copy for the checker.

    Parameters
    ----------
    model : ModelProto
        Its tensors have known types and possible dimensions, its names are valid.
    nodes : iterable of NodeProto
        Nodes of the main graph, sorted.
    """
    light = ModelProto(
        ir_version=max(4, model.ir_version),
        opset_import=model.opset_import,
        functions=model.functions,
        configuration=model.configuration,
        graph=_light_graph(model.graph, nodes),
    )
    for label, tensor in all_tensors(light):
        if is_external(tensor):
            _put_zeros(label, tensor)
    return light


def _light_graph(graph: GraphProto, nodes: Iterable[NodeProto]) -> GraphProto:
    light = GraphProto(
        name=graph.name,
        input=graph.input,
        output=graph.output,
        value_info=graph.value_info,
        quantization_annotation=graph.quantization_annotation,
    )
    inputs = {value.name for value in graph.input}

    def add_input(name: str, data_type: int, dims: Sequence[int]) -> None:
        if name not in inputs:
            light.input.append(helper.make_tensor_value_info(name, data_type, dims))

    for tensor in graph.initializer:
        if _is_bulk(tensor):
            add_input(tensor.name, tensor.data_type, tensor.dims)
        else:
            light.initializer.append(tensor)
    for sparse in graph.sparse_initializer:
        add_input(sparse.values.name, sparse.values.data_type, sparse.dims)
    for node in nodes:
        constant = next((a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")), None)
        if constant is not None and node.output and _is_bulk(constant):
            add_input(node.output[0], constant.data_type, constant.dims)
        else:
            light.node.append(node)
    return light


def _is_bulk(tensor: TensorProto) -> bool:
    return is_external(tensor) or math.prod(tensor.dims) > _LARGE


def _put_zeros(label: str, tensor: TensorProto) -> None:
    size = raw_bytes(tensor)
    if size > _MAX_STAND_IN:
        raise ModelError(f"{label} is external, {size} bytes large, and stands in a subgraph or a function.")
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    tensor.raw_data = bytes(size)
