"""All graphs, nodes and tensors of a model, subgraphs and functions entered, and how messages call them.

Training information is no part of any of it. A graph's nodes come before those of the graphs inside of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

SUB_BYTE = {"UINT2": 2, "INT2": 2, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
"""Bits of the element types that are packed."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Bodies of a node, not those inside of them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_below(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    """`nodes` and all nodes inside of them, at any depth."""
    yield from nodes
    for graph in _graphs_below(nodes):
        yield from graph.node


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Main graph, its subgraphs and those of the functions."""
    yield model.graph
    yield from _graphs_below(model.graph.node)
    for function in model.functions:
        yield from _graphs_below(function.node)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes of the main graph, of its subgraphs and of the functions."""
    yield from nodes_below(model.graph.node)
    for function in model.functions:
        yield from nodes_below(function.node)


def all_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers and tensors in attributes, with what messages call them; a sparse one is two tensors."""
    for graph in all_graphs(model):
        for tensor in graph.initializer:
            yield f"Initializer {quoted(tensor.name)}", tensor
        for sparse in graph.sparse_initializer:
            yield f"Values of the sparse initializer {quoted(sparse.values.name)}", sparse.values
            yield f"Indices of the sparse initializer {quoted(sparse.values.name)}", sparse.indices
    for node in all_nodes(model):
        for attribute in node.attribute:
            held = list(attribute.tensors)
            if attribute.HasField("t"):
                held.append(attribute.t)
            for sparse in attribute.sparse_tensors:
                held += (sparse.values, sparse.indices)
            if attribute.HasField("sparse_tensor"):
                held += (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for tensor in held:
                yield f"Attribute {quoted(attribute.name)} of {described(node)}", tensor


def initializer_names(graph: GraphProto) -> Iterator[str]:
    """Names of the dense, then of the sparse initializers."""
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)


def given_names(graph: GraphProto) -> set[str]:
    """Names that a graph has before its first node: inputs and initializers."""
    return {value.name for value in graph.input}.union(initializer_names(graph))


def read_names(node: NodeProto) -> set[str]:
    """Names that a node needs: its inputs and what its subgraphs capture."""
    return set(filter(None, node.input)) | captured_names(node)


def captured_names(node: NodeProto) -> set[str]:
    """Names that the subgraphs of a node read from the graphs around them."""
    names: set[str] = set()
    for graph in subgraphs(node):
        own = given_names(graph).union(*(inner.output for inner in graph.node))
        names.update(*(read_names(inner) - own for inner in graph.node))
        names.update({value.name for value in graph.output} - own)
    return names


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of this tensor stand in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def raw_bytes(tensor: TensorProto) -> int:
    """Length of a tensor's raw form, from its type (known, no strings) and its dimensions."""
    name = TensorProto.DataType.Name(tensor.data_type)
    bits = SUB_BYTE.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def quoted(text: str | bytes, limit: int = 80) -> str:
    r"""Name for a message: in quotes, on one line, control characters escaped, cut at `limit` characters.

    Examples
    --------
    >>> print(quoted("a\nb"), quoted("abcdef", limit=3))
    'a\nb' 'abc...'
    """
    shown = repr(text[:limit])
    return shown if len(text) <= limit else f"{shown[:-1]}...{shown[-1]}"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first few names, for a message.

    >>> some_of(["a", "b"]), some_of(["a", "b", "c", "d"], most=2)
    ("'a', 'b'", "'a', 'b' and 2 more")
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(quoted, names[:most])) + more


def escaped(text: str | bytes, limit: int = 80) -> str:
    """Text for a message, as `quoted` shows it, without the quotes."""
    return quoted(text, limit)[1:-1]


def described(node: NodeProto) -> str:
    """Node for a message: its operator and its name or, where it has none, what it writes."""
    if node.name:
        return f"{quoted(node.op_type)} node {quoted(node.name)}"
    return f"the {quoted(node.op_type)} node that writes {', '.join(map(quoted, node.output[:3]))}"


def _graphs_below(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for graph in subgraphs(node):
            yield graph
            yield from _graphs_below(graph.node)
