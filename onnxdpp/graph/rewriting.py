"""New constants into a copy of the original proto: the only place that writes a graph.

All changes are `Edits`: for a `Use` (node, slot), the constant that this node shall read from now on; for a `Setting`
(node, name), the integers that this attribute shall hold. Slicing a layer and giving a projection new weights both come
down to edits; `apply` writes them and knows no operator. A constant that somebody else reads too is not overwritten:
the edited reader gets a tensor of its own. Whatever the edits do not name stays equal, field by field, unknown fields
included.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.atoms import Labels
from onnxdpp.graph.checking import sorted_nodes
from onnxdpp.graph.external import clear, mapped_from, refer
from onnxdpp.graph.flow import Count
from onnxdpp.graph.folding import FOLDING
from onnxdpp.graph.index import ONNX_DOMAINS, Array, Graph, Setting, Use
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.names import Names
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.walking import quoted

Edits: TypeAlias = dict[Use | Setting, Array]


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


def sliced(graph: Graph, edits: Edits, layer: Layer, keep: NDArray[np.intp]) -> Edits:
    """Edits after which only the neurons `keep` of a layer are left.

    Parameters
    ----------
    graph : Graph
    edits : Edits
        What was decided before; not changed.
    layer : Layer
    keep : (k,) integer array
        In any order: neuron keep[i] comes to lie where the i-th of them lay. (For neurons of one section, that leaves
        the function of the model as it is.)
    """
    result = dict(edits)
    for part in layer.slices:
        result[part.use] = np.take(current(graph, result, part.use), _staying(part.labels, keep), axis=part.axis)
    for count in layer.counts:
        entries = np.array(result.get(count.place, _counts(graph, count)))
        entries.reshape(-1)[count.position] = np.count_nonzero(np.isin(count.labels, keep) | (count.labels < 0))
        result[count.place] = entries
    return result


def _counts(graph: Graph, count: Count) -> Array:
    """The numbers that stand where `count` does, in their own type; int64 where they are left out so far."""
    if isinstance(count.place, Use) and graph.name_at(count.place):
        return current(graph, {}, count.place)
    return np.array(count.whole, np.int64)


def silenced(graph: Graph, layer: Layer, keep: NDArray[np.intp]) -> Edits:
    """Edits after which the consumers of a layer have zeros for all neurons but `keep`; shapes stay."""
    result: Edits = {}
    for _, part in layer.consumers:
        weights = np.array(current(graph, result, part.use))
        gone = ~np.isin(part.labels, keep) & (part.labels >= 0)
        np.moveaxis(weights, part.axis, 0)[gone] = 0
        result[part.use] = weights
    return result


def _staying(labels: Labels, keep: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which entries are left, in their new order, where each has the label of a neuron."""
    index = np.arange(len(labels))
    places = np.sort(keep)
    if not np.array_equal(places, keep):
        for place, neuron in zip(places, keep, strict=True):
            index[labels == place] = np.flatnonzero(labels == neuron)
    return index[np.isin(labels, keep) | (labels < 0)]


def sliced_constant(use: Use | Setting, array: Array, cut: Iterable[tuple[Layer, NDArray[np.intp]]]) -> Array:
    """The constant at `use`, whole, without what belongs to neurons that are gone.

    Parameters
    ----------
    use : Use
    array : array
    cut : iterable of (Layer, keep)
    """
    for layer, keep in cut:
        for part in layer.slices:
            if part.use == use:
                array = np.take(array, _staying(part.labels, keep), axis=part.axis)
    return array


def reweighted(
    graph: Graph,
    projection: Projection,
    weights: NDArray[np.float64],
    intercept: NDArray[np.float64] | None,
) -> Edits:
    """Edits after which `projection` acts by `weights` and adds `intercept` to what it adds in `graph`.

    Parameters
    ----------
    weights : (n, m) float64 array
        The matrix that acts, whatever alpha and transposition the node has.
    intercept : (m,) float64 array or None
        None, or a projection with a `bias` to hold it (see `with_biases`).
    """
    result: Edits = {}
    old = current(graph, {}, projection.weight)
    new = _narrowed(projection, projection.stored(weights), old)
    # An alpha multiplied in and divided out again may cost the last bit of what stays as it was.
    same = projection.laid_out(weights == projection.effective(old))
    result[projection.weight] = np.where(same, old, new)
    if intercept is not None:
        if projection.bias is None:
            raise ValueError(f"{projection.name!r} has no bias to hold an intercept")
        bias = current(graph, {}, projection.bias.use)
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


def apply(graph: Graph, edits: Mapping[Use | Setting, Array], changed: Collection[str] = ()) -> ModelProto:
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
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    uses: dict[Use, Array] = {place: array for place, array in edits.items() if isinstance(place, Use)}
    for use, array in sorted(uses.items()):
        name = graph.name_at(use)
        if name and _same(graph, name, array):
            continue
        if name and graph.folding_node(name) is None and graph.shared_with(use) is None:
            _overwrite(result, nodes, tensors, graph, name, array)
            stale |= {name} | graph.made_of(name)
        else:
            fresh = names.fresh(f"{name or nodes[use.node].output[0]}_{use.node}")
            inputs = nodes[use.node].input
            inputs.extend([""] * (use.slot + 1 - len(inputs)))
            inputs[use.slot] = fresh
            add_initializer(result, fresh, array)
            if graph.nodes[use.node].op_type in FOLDING:
                made = set(graph.nodes[use.node].output)
                stale |= made.union(*map(graph.made_of, made))
    for place, array in edits.items():
        if isinstance(place, Setting):
            _set(nodes[place.node], place.name, array)
    _settle(nodes, uses)
    drop_unread(result, graph, {graph.name_at(use) for use in uses})
    kept = [value for value in result.graph.value_info if value.name not in stale]
    if len(kept) != len(result.graph.value_info):
        del result.graph.value_info[:]
        result.graph.value_info.extend(kept)
    return result


def _set(node: NodeProto, name: str, array: Array) -> None:
    """Let the attribute `name` hold these integers, one of them or a list as before (a list where it was left out)."""
    old = next((entry for entry in node.attribute if entry.name == name), None)
    values = [int(value) for value in array]
    scalar = old is not None and old.type == AttributeProto.INT
    new = helper.make_attribute(name, values[0] if scalar else values)
    if old is None:
        node.attribute.append(new)
    else:
        old.ClearField("i")
        del old.ints[:]
        old.MergeFrom(new)


def _settle(nodes: list[NodeProto], uses: Iterable[Use]) -> None:
    """A Split with sizes has no number of outputs beside them."""
    for use in uses:
        node = nodes[use.node]
        if node.op_type == "Split" and use.slot == 1:
            for entry in [entry for entry in node.attribute if entry.name == "num_outputs"]:
                node.attribute.remove(entry)


def _same(graph: Graph, name: str, after: Array) -> bool:
    """Whether the constant `name` is `after` already, bit by bit."""
    tensor = graph.tensor(name)
    if tensor is not None and tuple(tensor.dims) != after.shape:
        return False
    before = graph.array(name)
    if before is None or before.shape != after.shape:
        return False
    # Refitted weights differ at once: large ones are rarely copied as a whole for this.
    return before.ravel()[:64].tobytes() == after.ravel()[:64].tobytes() and before.tobytes() == after.tobytes()


def _overwrite(
    model: ModelProto,
    nodes: list[NodeProto],
    tensors: Mapping[str, TensorProto],
    graph: Graph,
    name: str,
    array: Array,
) -> None:
    """Put `array` where the constant `name` was."""
    if name in tensors:
        fill(tensors[name], array)
        for value in model.graph.input:  # before IR version 4 initializers are listed there too
            if value.name == name:
                value.type.CopyFrom(helper.make_tensor_type_proto(tensors[name].data_type, array.shape))
        return
    node = nodes[graph.producer[name]]
    entry = node.attribute[0]
    array = array.copy()  # not in a file: runtimes look for external data of initializers only
    if entry.name == "value":
        fill(entry.t, array)
    else:
        tensor = TensorProto()
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        fill(tensor, array)
        node.attribute.remove(entry)
        node.attribute.append(helper.make_attribute("value", tensor))


def fill(tensor: TensorProto, array: Array) -> None:
    """New dims and data; name, type and all other fields stay. An array in a file stays there."""
    del tensor.dims[:]
    tensor.dims.extend(array.shape)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    place = mapped_from(array) if array.dtype == dtype else None
    if place is not None:
        refer(tensor, str(place.path), place.offset, place.length)
        return
    clear(tensor)
    tensor.raw_data = array.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def add_initializer(model: ModelProto, name: str, array: Array) -> None:
    """Give the model a constant of its own."""
    tensor = model.graph.initializer.add()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    fill(tensor, array)
    if model.ir_version < 4:
        value = ValueInfoProto(name=name)
        value.type.CopyFrom(helper.make_tensor_type_proto(tensor.data_type, array.shape))
        model.graph.input.append(value)


def drop_unread(model: ModelProto, graph: Graph, candidates: set[str]) -> None:
    """Remove constants among `candidates` that lost their last reader, and what they were made of."""
    while candidates:
        read = {name for node in model.graph.node for name in node.input} | graph.captured.keys() | graph.outputs
        dead = candidates - read
        candidates = set()
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name in dead]:
            model.graph.initializer.remove(tensor)
        for values in (model.graph.input, model.graph.value_info):
            for value in [value for value in values if value.name in dead]:
                values.remove(value)
        for node in [node for node in model.graph.node if dead.intersection(node.output)]:
            if node.op_type in ("Constant", *FOLDING) and node.domain in ONNX_DOMAINS:
                candidates.update(filter(None, node.input))
                model.graph.node.remove(node)
