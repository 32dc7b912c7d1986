"""Is this model sound? What onnx.checker lets pass, in front of what it finds.

The checks, in this order; the first flaw found is raised as a `ModelError` of one line:

1. versions: a graph; an IR version and operator sets that the installed onnx knows;
2. names: valid UTF-8, no initializer, graph input or graph output twice;
3. tensors, wherever they stand (initializers, node attributes, subgraphs, functions): a known element type,
   possible dimensions, the data once and exactly as long as type and dimensions ask, no NaN;
4. functions: no recursion, no expansion that would keep onnxruntime busy for ever;
5. edges: each value written once, everything read written, no cycle. The nodes of the main graph may stand in
   any order, as they may for onnxruntime;
6. ``onnx.checker`` with shape inference, on the skeleton of the model.

Nothing changes its argument. Cost: linear in nodes and tensors, 0.6 s for 20 000 nodes. Asking for the
length of ``raw_data`` copies it in protobuf's Python binding: each weight is touched once, 0.3 s for 400
MB, and memory is needed for one more copy of the largest.
"""

import graphlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.skeleton import skeleton
from onnxdpp.graph.walking import (
    SUB_BYTE,
    all_graphs,
    all_nodes,
    all_tensors,
    described,
    given_names,
    initializer_names,
    is_external,
    nodes_below,
    quoted,
    raw_bytes,
    read_names,
)

MAX_EXPANDED_NODES = 100_000
"""Nodes that functions may expand to: onnxruntime already takes a minute for 65 000."""

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_BLOCK = 1 << 20  # entries that are looked at together
_MAX_RANK, _MAX_ELEMENTS = 64, 2**59  # what NumPy can address
_DEFAULT_DOMAINS = ("", "ai.onnx")
_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def check_model(model: ModelProto, name: str) -> None:
    """Refuse a model that is not sound.

    Parameters
    ----------
    model : ModelProto
        External data are not looked at, they may be missing.
    name : str
        What messages call the model, its path for instance.

    Raises
    ------
    ModelError
        One line: the model's name, the flaw and the named thing that has it.
    """
    try:
        _check_versions(model)
        _check_names(model)
        for label, tensor in all_tensors(model):
            _check_tensor(tensor, label)
        _check_functions(model)
        _check_with_onnx(model, sorted_nodes(model.graph))
    except ModelError as flaw:
        raise ModelError(f"Model {quoted(name, limit=300)}: {flaw}") from flaw.__cause__


def sorted_nodes(graph: GraphProto) -> list[NodeProto]:
    """Nodes in topological order; those that may stay where they are do.

    What the body of an If, Loop or Scan captures counts as read by the node that has the body.

    Parameters
    ----------
    graph : GraphProto
        A main graph: all that it reads is its own.

    Returns
    -------
    list of NodeProto
        The graph's own nodes, not copies.

    Raises
    ------
    ModelError
        On a cycle, on a name that nothing writes and on one that is written twice.

    Notes
    -----
    Kahn's algorithm, always taking the ready node that came first: a sorted graph is returned as it is.

    Examples
    --------
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     g (float[N] x) => (float[N] z) { z = Exp(y)   y = Relu(x) }''')
    >>> [node.op_type for node in sorted_nodes(model.graph)]
    ['Relu', 'Exp']
    """
    given = given_names(graph)
    writer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for value in filter(None, node.output):
            if value in writer or value in given:
                raise ModelError(f"Value {quoted(value)} is written more than once, by {described(node)} too.")
            writer[value] = index
    reads: dict[int, set[int]] = {}
    for index, node in enumerate(graph.node):
        names = read_names(node) - given
        if missing := sorted(name for name in names if name not in writer):
            raise ModelError(f"{described(node)} reads {quoted(missing[0])}, which nothing writes.")
        reads[index] = {writer[value] for value in names}
    for output in graph.output:
        if output.name not in writer and output.name not in given:
            raise ModelError(f"Graph output {quoted(output.name)} is written by no node.")

    sorter = graphlib.TopologicalSorter(reads)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        culprit = graph.node[error.args[1][0]]
        raise ModelError(f"{described(culprit)} reads, along a cycle, what it writes itself.") from None
    order: list[NodeProto] = []
    ready: list[int] = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        first = heapq.heappop(ready)
        order.append(graph.node[first])
        sorter.done(first)
    return order


# Checks


def _check_versions(model: ModelProto) -> None:
    if not model.HasField("graph"):
        raise ModelError("It holds no graph.")
    known = f"the installed onnx {onnx.__version__} knows 1 to"
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(f"Its IR version is {model.ir_version}; {known} {onnx.IR_VERSION}.")
    if not model.opset_import:
        raise ModelError("It imports no operator set (opset_import).")
    newest = onnx.defs.onnx_opset_version()
    importers: list[ModelProto | FunctionProto] = [model, *model.functions]
    for importer in importers:
        for opset in importer.opset_import:
            if opset.domain in _DEFAULT_DOMAINS and not 1 <= opset.version <= newest:
                raise ModelError(f"It imports operator set {opset.version}; {known} {newest}.")


def _check_names(model: ModelProto) -> None:
    for name in _names(model):
        # protobuf hands a string that is not UTF-8 out as bytes.
        if isinstance(name, bytes):
            raise ModelError(f"The name {quoted(name)} is not valid UTF-8.")
    for graph in all_graphs(model):
        _check_unique("Initializer", initializer_names(graph))
    _check_unique("Graph input", (value.name for value in model.graph.input))
    _check_unique("Graph output", (value.name for value in model.graph.output))


def _names(model: ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        yield opset.domain
    for function in model.functions:
        yield from (function.domain, function.name, function.overload)
        yield from (*function.input, *function.output, *function.attribute)
        yield from (opset.domain for opset in function.opset_import)
    for graph in all_graphs(model):
        yield graph.name
        yield from initializer_names(graph)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for node in all_nodes(model):
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _check_unique(kind: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ModelError(f"{kind} {quoted(name)} is declared {count} times.")


def _check_tensor(tensor: TensorProto, label: str) -> None:
    kind = tensor.data_type
    if kind == TensorProto.UNDEFINED or kind not in TensorProto.DataType.values():
        raise ModelError(f"{label} has the unknown element type {kind}.")
    shape = "x".join(map(str, tensor.dims[:_MAX_RANK])) or "scalar"
    if (
        len(tensor.dims) > _MAX_RANK
        or any(dim < 0 for dim in tensor.dims)
        or math.prod(max(dim, 1) for dim in tensor.dims) >= _MAX_ELEMENTS
    ):
        raise ModelError(f"{label} has the impossible shape {shape}.")

    held = {field: len(getattr(tensor, field)) for field in _DATA_FIELDS}
    filled = [field for field, count in held.items() if count]
    if is_external(tensor):
        if filled or kind == TensorProto.STRING:
            raise ModelError(f"{label} is external and holds {' and '.join(filled) or 'strings'}.")
        return
    if len(filled) > 1:
        raise ModelError(f"{label} holds its data more than once: {' and '.join(filled)}.")

    elements = math.prod(tensor.dims)
    typed = onnx.helper.tensor_dtype_to_field(kind)
    field = filled[0] if filled else typed
    if field == "raw_data" and kind != TensorProto.STRING:
        wanted = raw_bytes(tensor)
    elif field != typed:
        raise ModelError(f"{label} has {field}, where its element type asks for {typed}.")
    elif kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        wanted = 2 * elements
    elif SUB_BYTE.get(TensorProto.DataType.Name(kind)) in (2, 4):
        wanted = raw_bytes(tensor)  # an entry holds a byte, and so several elements
    else:
        wanted = elements
    if kind in _FLOATS and held[field] == wanted:
        check_numbers(numpy_helper.to_array(tensor), label)
    if held[field] != wanted:
        type_name = TensorProto.DataType.Name(kind).lower()
        unit = "bytes" if field == "raw_data" else f"entries of {field}"
        raise ModelError(f"{label} ({type_name}, {shape}) needs {wanted} {unit} and has {held[field]}.")


def check_numbers(array: NDArray[np.floating], label: str) -> None:
    """Refuse NaN; an infinity may be meant, as in a mask."""
    flat = array.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    if bad := sum(int(np.count_nonzero(np.isnan(block))) for block in blocks):
        raise ModelError(f"{label} holds {bad} NaN among {array.size} entries. Export it again from sound weights.")


def _check_functions(model: ModelProto) -> None:
    """Count what expanding the functions would make of the model, without doing it."""
    bodies = {_key(f.domain, f.name, f.overload): list(nodes_below(f.node)) for f in model.functions}

    def calls(nodes: Iterable[NodeProto]) -> Counter[tuple[str, str, str]]:
        keys = Counter(_key(node.domain, node.op_type, node.overload) for node in nodes)
        return Counter({key: count for key, count in keys.items() if key in bodies})

    callees = {key: calls(nodes) for key, nodes in bodies.items()}
    size: dict[tuple[str, str, str], int] = {}
    try:
        for key in graphlib.TopologicalSorter(callees).static_order():
            size[key] = len(bodies[key]) + sum(size[callee] * n for callee, n in callees[key].items())
    except graphlib.CycleError as error:
        path = " > ".join(quoted(key[1]) for key in error.args[1][:5])
        raise ModelError(f"Its functions call themselves: {path}.") from None
    expanded = sum(size[callee] * n for callee, n in calls(nodes_below(model.graph.node)).items())
    if expanded > MAX_EXPANDED_NODES:
        raise ModelError(f"Its functions expand to {expanded} nodes; {MAX_EXPANDED_NODES} is the limit.")


def _key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain in _DEFAULT_DOMAINS else domain, name, overload)


def _check_with_onnx(model: ModelProto, nodes: list[NodeProto]) -> None:
    light = skeleton(model, nodes)
    try:
        for sparse in model.graph.sparse_initializer:
            onnx.checker.check_sparse_tensor(sparse)
        onnx.checker.check_model(light, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, and whatever else native code throws
        message = " ".join(str(error).partition("==> Context")[0].split())
        message = message.removeprefix("[ShapeInferenceError] Inference error(s): ")
        raise ModelError(f"onnx.checker refuses it: {quoted(message.rstrip('.'), limit=400)[1:-1]}.") from error
