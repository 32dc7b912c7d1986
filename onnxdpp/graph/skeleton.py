"""What onnx.checker gets to see: a sorted copy of a model without large weights, documentation and training.

A large or external weight of a graph becomes the output of an operator that the checker does not know and
so passes over, of a declared type and shape. So weights are never copied and external data need not be
there. The copy is also spared what onnxruntime does not mind: metadata with repeated keys, initializers
that an IR version below 4 wants among the graph inputs, the order of the main graph's nodes.
"""

import math
from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxdpp.graph.walking import is_external, subgraphs

_STUB_DOMAIN = "onnxdpp.weight"
_LARGE = 1024  # elements; a smaller tensor may be a shape or an axis that shape inference reads


def skeleton(model: ModelProto, nodes: Iterable[NodeProto]) -> ModelProto:
    """Copy for the checker.

    Parameters
    ----------
    model : ModelProto
        Its tensors have known types and possible dimensions, its names are valid.
    nodes : iterable of NodeProto
        Nodes of the main graph, sorted.

    Returns
    -------
    ModelProto
        Functions are copied whole: their values have no declared types that a stub would need.
    """
    light = ModelProto(
        ir_version=max(4, model.ir_version),
        opset_import=model.opset_import,
        functions=model.functions,
        configuration=model.configuration,
        graph=_light_graph(model.graph, nodes),
    )
    light.opset_import.add(domain=_STUB_DOMAIN, version=1)
    return light


def _light_graph(graph: GraphProto, nodes: Iterable[NodeProto]) -> GraphProto:
    light = GraphProto(
        name=graph.name,
        input=graph.input,
        output=graph.output,
        value_info=graph.value_info,
        sparse_initializer=graph.sparse_initializer,
        quantization_annotation=graph.quantization_annotation,
    )
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if not _is_bulk(tensor):
            light.initializer.append(tensor)
        elif tensor.name not in inputs:
            _add_stub(light, tensor.name, tensor)
    for node in nodes:
        constant = next((a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")), None)
        if constant is not None and node.output and _is_bulk(constant):
            _add_stub(light, node.output[0], constant)
        elif any(True for _ in subgraphs(node)):
            light.node.append(_light_node(node))
        else:
            light.node.append(node)
    return light


def _light_node(node: NodeProto) -> NodeProto:
    light = NodeProto(
        name=node.name,
        op_type=node.op_type,
        domain=node.domain,
        overload=node.overload,
        input=node.input,
        output=node.output,
    )
    for attribute in node.attribute:
        if attribute.HasField("g"):
            body = light.attribute.add(name=attribute.name, type=attribute.type)
            body.g.CopyFrom(_light_graph(attribute.g, attribute.g.node))
        else:
            light.attribute.append(attribute)
    return light


def _is_bulk(tensor: TensorProto) -> bool:
    return is_external(tensor) or math.prod(tensor.dims) > _LARGE


def _add_stub(graph: GraphProto, name: str, tensor: TensorProto) -> None:
    graph.node.add(op_type="Weight", domain=_STUB_DOMAIN, output=[name])
    graph.value_info.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
