"""New constants into a copy of the original proto: the only place that writes a graph.

All changes are `Edits`: for a `Use` (node, slot), the constant that this node shall read from now on. Slicing a layer
and giving a projection new weights both come down to edits; `apply` writes them and knows no operator. A constant
that somebody else reads too is not overwritten: the edited reader gets a tensor of its own. Whatever the edits do
not name stays equal, field by field, unknown fields included.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.checking import sorted_nodes
from onnxdpp.graph.index import Array, Graph, Use, attribute
from onnxdpp.graph.layers import WeightAxis
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.walking import all_graphs, all_nodes, quoted

Edits: TypeAlias = dict[Use, Array]


def in_order(model: ModelProto) -> ModelProto:
    """The model itself where its nodes stand in topological order, else a copy in which they do."""
    ordered = sorted_nodes(model.graph)
    if all(old is new for old, new in zip(model.graph.node, ordered, strict=True)):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(ordered)
    return result


def current(graph: Graph, edits: Edits, use: Use) -> Array:
    """The constant at `use` with the edits so far."""
    if use in edits:
        return edits[use]
    array = graph.array(graph.name_at(use))
    if array is None:
        raise ValueError(f"{use} is no constant")
    return array


def sliced(graph: Graph, edits: Edits, axes: Iterable[WeightAxis], keep: NDArray[np.intp]) -> Edits:
    """Edits after which only the neurons `keep` are left, in that order.

    Parameters
    ----------
    graph : Graph
    edits : Edits
        What was decided before; not changed.
    axes : iterable of WeightAxis
        Every constant with an entry per neuron.
    keep : (k,) integer array
    """
    result = dict(edits)
    for part in axes:
        positions = part.positions[keep].ravel()
        result[part.use] = np.take(current(graph, result, part.use), positions, axis=part.axis)
    return result


def reweighted(
    graph: Graph,
    edits: Edits,
    projection: Projection,
    weights: NDArray[np.float64],
    intercept: NDArray[np.float64] | None,
) -> Edits:
    """Edits after which `projection` acts by `weights` and adds `intercept` to what it added before.

    Parameters
    ----------
    weights : (n, m) float64 array
        The matrix that acts, whatever alpha and transposition the node has.
    intercept : (m,) float64 array or None
        None, or a projection with a `bias` to hold it (see `with_biases`).
    """
    result = dict(edits)
    old = current(graph, edits, projection.weight)
    new = _narrowed(projection, projection.stored(weights), old)
    # An alpha multiplied in and divided out again may cost the last bit of what stays as it was.
    same = weights == projection.effective(old)
    result[projection.weight] = np.where(same.T if projection.transposed else same, old, new)
    if intercept is not None:
        if projection.bias is None:
            raise ValueError(f"{projection.name!r} has no bias to hold an intercept")
        bias = current(graph, edits, projection.bias.use)
        result[projection.bias.use] = _narrowed(projection, bias + intercept / projection.bias.factor, bias)
    return result


def _narrowed(projection: Projection, array: NDArray[np.float64], old: Array) -> Array:
    """`array` in the type of the constant that it replaces."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(old.dtype)
    if not np.isfinite(result).all():
        raise ModelError(
            f"The refitted weights of {quoted(projection.name)} do not fit into {old.dtype}. "
            "Keep more of its inputs, or take --refit none."
        )
    return result


def apply(graph: Graph, edits: Mapping[Use, Array], changed: Collection[str] = ()) -> ModelProto:
    """A copy of the model in which every edited use reads its new constant.

    Parameters
    ----------
    graph : Graph
    edits : Edits
        Entries equal to the constant that is there already leave it as it is.
    changed : collection of value names
        Values whose shape the edits change; what the file says of their shapes is dropped.
    """
    result = ModelProto()
    result.CopyFrom(graph.model)
    nodes = list(result.graph.node)
    stale = set(changed)
    names = Names(graph)
    for use, array in sorted(edits.items()):
        name = graph.name_at(use)
        if _same(graph.array(name), array):
            continue
        if graph.shared_with(use) is None:
            _overwrite(result, nodes, graph, name, array)
            stale.add(name)
        else:
            fresh = names.fresh(f"{name}_{use.node}")
            nodes[use.node].input[use.slot] = fresh
            _add_initializer(result, fresh, array)
    _drop_unread(result, graph, {graph.name_at(use) for use in edits})
    kept = [value for value in result.graph.value_info if value.name not in stale]
    if len(kept) != len(result.graph.value_info):
        del result.graph.value_info[:]
        result.graph.value_info.extend(kept)
    return result


def with_biases(graph: Graph, projections: Iterable[Projection]) -> ModelProto:
    """A copy of the model in which each of `projections` has a bias with an entry per output, zero where it had none.

    A Gemm gets its third input (and beta 1 where beta was 0); behind a MatMul, or a Gemm whose third input is no
    constant, an Add is put in, and the value keeps its name. A bias of one entry for all outputs is spread.
    """
    wanted = list(projections)
    spread = {part.bias.use: _spread(graph, part.bias.use, part.m) for part in wanted if part.bias is not None}
    result = apply(graph, spread)
    # A Constant node that lost its last reader is gone, and all nodes behind it have moved.
    changed = Graph(result)
    names = Names(changed)
    behind: dict[int, NodeProto] = {}
    for part in wanted:
        if part.bias is not None:
            continue
        position = changed.producer[graph.nodes[part.node].output[0]]
        node = changed.nodes[position]
        weight = graph.array(graph.name_at(part.weight))
        assert weight is not None
        bias = names.fresh(f"{node.input[1]}_bias")
        _add_initializer(result, bias, np.zeros(part.m, weight.dtype))
        unused = graph.name_at(Use(part.node, 2))
        idle = attribute(node, "beta", 1.0) == 0 and graph.array(unused) is not None
        if node.op_type == "Gemm" and (not unused or idle):
            kept = [entry for entry in node.attribute if entry.name != "beta"]
            del node.input[2:], node.attribute[:]
            node.input.append(bias)
            node.attribute.extend(kept)
            _drop_unread(result, graph, {unused} & {tensor.name for tensor in graph.model.graph.initializer})
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


def _same(before: Array | None, after: Array) -> bool:
    return before is not None and before.shape == after.shape and before.tobytes() == after.tobytes()


class Names:
    """Hands out names that nothing in the model uses yet."""

    def __init__(self, graph: Graph) -> None:
        self.taken: set[str] = set()
        for part in all_graphs(graph.model):
            self.taken.update(value.name for value in (*part.input, *part.output, *part.value_info))
            self.taken.update(tensor.name for tensor in part.initializer)
            self.taken.update(tensor.values.name for tensor in part.sparse_initializer)
        for node in all_nodes(graph.model):
            self.taken.update((node.name, *node.input, *node.output))

    def fresh(self, wish: str) -> str:
        """`wish`, or `wish` with a number."""
        name, number = wish, 1
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        return name


def _overwrite(model: ModelProto, nodes: list[NodeProto], graph: Graph, name: str, array: Array) -> None:
    """Put `array` where the constant `name` was."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            _fill(tensor, array)
            for value in model.graph.input:  # before IR version 4 initializers are listed there too
                if value.name == name:
                    value.type.CopyFrom(helper.make_tensor_type_proto(tensor.data_type, array.shape))
            return
    node = nodes[graph.producer[name]]
    entry = node.attribute[0]
    if entry.name == "value":
        _fill(entry.t, array)
    else:
        tensor = TensorProto()
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        _fill(tensor, array)
        node.attribute.remove(entry)
        node.attribute.append(helper.make_attribute("value", tensor))


def _fill(tensor: TensorProto, array: Array) -> None:
    """New dims and data; name, type and all other fields stay."""
    for field in ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "raw_data"):
        tensor.ClearField(field)
    del tensor.dims[:]
    tensor.dims.extend(array.shape)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.raw_data = array.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def _add_initializer(model: ModelProto, name: str, array: Array) -> None:
    tensor = model.graph.initializer.add()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    _fill(tensor, array)
    if model.ir_version < 4:
        value = ValueInfoProto(name=name)
        value.type.CopyFrom(helper.make_tensor_type_proto(tensor.data_type, array.shape))
        model.graph.input.append(value)


def _drop_unread(model: ModelProto, graph: Graph, candidates: set[str]) -> None:
    """Remove constants among `candidates` that lost their last reader."""
    read = {name for node in model.graph.node for name in node.input} | graph.captured.keys() | graph.outputs
    dead = candidates - read
    if not dead:
        return
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in dead]:
        model.graph.initializer.remove(tensor)
    for values in (model.graph.input, model.graph.value_info):
        for value in [value for value in values if value.name in dead]:
            values.remove(value)
    for node in [node for node in model.graph.node if node.op_type == "Constant" and node.output[0] in dead]:
        model.graph.node.remove(node)
