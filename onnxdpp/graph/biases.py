"""A bias for every projection that is to be refitted with an intercept."""

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnxdpp.graph.index import Array, Graph, Use, attribute
from onnxdpp.graph.names import Names
from onnxdpp.graph.projections import CONVOLUTIONS, Projection
from onnxdpp.graph.rewriting import Edits, add_initializer, apply, drop_unread


def with_biases(graph: Graph, projections: Iterable[Projection]) -> ModelProto:
    """A copy of the model in which each of `projections` has a bias with an entry per output, zero where it had none.

    A convolution and a Gemm get their third input (and beta 1 where beta was 0); behind a MatMul, or a Gemm whose third
    input is no constant, an Add is put in, and the value keeps its name. A bias of one entry for all outputs is spread.
    """
    wanted = list(projections)
    spread: Edits = {part.bias.use: _spread(graph, part.bias.use, part.m) for part in wanted if part.bias is not None}
    result = apply(graph, spread)
    # A Constant node that lost its last reader is gone, and all nodes behind it have moved.
    changed = Graph(result, graph.folder)
    names = Names(changed)
    behind: dict[int, NodeProto] = {}
    for part in wanted:
        if part.bias is not None:
            continue
        position = changed.producer[graph.nodes[part.node].output[0]]
        node = changed.nodes[position]
        weight = graph.array(graph.nodes[part.node].input[1])  # in the type that the node reads
        assert weight is not None
        bias = names.fresh(f"{node.input[1]}_bias")
        add_initializer(result, bias, np.zeros(part.m, weight.dtype))
        unused = graph.name_at(Use(part.node, 2))
        idle = attribute(node, "beta", 1.0) == 0 and graph.array(unused) is not None
        if node.op_type in ("Gemm", *CONVOLUTIONS) and (not unused or idle):
            kept = [entry for entry in node.attribute if entry.name != "beta"]
            del node.input[2:], node.attribute[:]
            node.input.append(bias)
            node.attribute.extend(kept)
            drop_unread(result, graph, {unused} & {tensor.name for tensor in graph.model.graph.initializer})
        else:
            before = names.fresh(f"{node.output[0]}_before_bias")
            title = names.fresh(f"{node.name or bias}_add")
            behind[position] = helper.make_node("Add", [before, bias], [node.output[0]], name=title)
            node.output[0] = before
    if behind:
        nodes = list(result.graph.node)
        del result.graph.node[:]
        for index, node in enumerate(nodes):
            result.graph.node.append(node)
            if index in behind:
                result.graph.node.append(behind[index])
    return result


def _spread(graph: Graph, use: Use, m: int) -> Array:
    """The bias at `use` with an entry for each of the m outputs along its last axis."""
    bias = graph.array(graph.name_at(use))
    assert bias is not None
    return np.broadcast_to(bias, (*bias.shape[:-1], m))
