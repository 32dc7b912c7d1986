"""What is known of a graph's shapes before it runs: sizes, symbols, and where a target shape has its numbers from.

Sizes come from onnx's shape inference, on a copy without the shapes that the file claims (they may lie; a graph input's
do not, onnxruntime holds callers to them). A size is an int; a str where it is unknown but has a name (equal names,
equal sizes); None where nothing is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from onnxdpp.graph.checking import sorted_nodes
from onnxdpp.graph.index import ONNX_DOMAINS, Graph, Use, attribute
from onnxdpp.graph.skeleton import skeleton

Size = int | str | None
ROUNDS = 16
"""How often onnx's inference is put on track again."""
NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
"""Their output has the shape of their input, which onnx's inference does not say of all."""


@dataclass(frozen=True)
class Entry:
    """One number of a vector that says a shape.

    Attributes
    ----------
    value : int or None
        Where it is constant.
    use, position : Use and int, or None
        Where this constant stands: entry `position` of the constant that `use` reads.
    dimension : (str, int) or None
        Value and axis, from the front, whose size it is.
    """

    value: int | None = None
    use: Use | None = None
    position: int = 0
    dimension: tuple[str, int] | None = None


class Shapes:
    """Shapes of the values of `graph`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        light = _light(graph)
        self._read(_inferred(light))
        # Behind an If, or a Reshape to a computed target, onnx's inference may lose track; what is known all the same
        # puts it on track again.
        for _ in range(ROUNDS):
            added = [value for value in map(self._value_info, light.graph.node) if value is not None]
            if not added:
                break
            light.graph.value_info.extend(added)
            self._read(_inferred(light))

    def _read(self, inferred: onnx.ModelProto) -> None:
        self._known: dict[str, tuple[Size, ...]] = {value.name: _sizes(value) for value in _values(inferred)}
        everything = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in everything}

    def _value_info(self, node: NodeProto) -> onnx.ValueInfoProto | None:
        """What is known of the output of `node` that onnx's inference did not see."""
        if not node.output or node.output[0] in self._known or node.domain not in ONNX_DOMAINS:
            return None
        sizes: Sequence[Size] | None = None
        kind: int = 0
        if node.op_type in ("Conv", "ConvTranspose", "MatMul"):
            weight = self._graph.array(node.input[1])
            if weight is None:
                return None
            before = self.rank(node.input[0])
            if node.op_type != "MatMul":
                sizes = [None, weight.shape[0] if node.op_type == "Conv" else None, *[None] * (weight.ndim - 2)]
            elif before is not None and weight.ndim == 2 and before > 1:
                sizes = [None] * (before - 1) + [weight.shape[1]]
            kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        elif node.op_type in NORMS:
            sizes, kind = self.shape(node.input[0]), self._types.get(node.input[0], 0)
        elif node.op_type == "Reshape":
            sizes = self._target(self._graph.producer[node.output[0]])
            kind = self._types.get(node.input[0], 0)
        if sizes is None or not kind:
            return None
        value: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(node.output[0], kind, sizes)
        return value

    def shape(self, name: str) -> tuple[Size, ...] | None:
        """Sizes of the value `name`; None where not even their number is known."""
        if name in self._known:
            return self._known[name]
        array = self._graph.array(name)
        return None if array is None else array.shape

    def _target(self, index: int) -> tuple[Size, ...] | None:
        """What its target shape says of a Reshape that onnx's inference could not follow."""
        entries = self.entries(Use(index, 1))
        if entries is None:
            return None
        sizes: list[Size] = []
        for entry in entries:
            source = self.shape(entry.dimension[0]) if entry.dimension else None
            known = entry.value if entry.value is not None and entry.value > 0 else None
            sizes.append(known if source is None or entry.dimension is None else source[entry.dimension[1]])
        return tuple(sizes)

    def rank(self, name: str) -> int | None:
        """Number of axes of the value `name`."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def entries(self, use: Use) -> list[Entry] | None:
        """Where the entries of the integer vector (or scalar) at `use` come from; None where that is not known."""
        name = self._graph.name_at(use)
        array = self._graph.array(name) if self._graph.why_not_constant(name) is None else None
        if array is not None:
            return [Entry(int(value), use, position) for position, value in enumerate(np.ravel(array))]
        index = self._graph.producer.get(name)
        node = None if index is None else self._graph.nodes[index]
        if node is None or index is None or node.domain not in ONNX_DOMAINS:
            return self._unknown(name)
        found: list[Entry] | None = None
        match node.op_type:
            case "Concat":
                parts = [self.entries(Use(index, slot)) for slot in range(len(node.input))]
                found = None if None in parts else [entry for part in parts for entry in part or ()]
            case "Unsqueeze" | "Squeeze" | "Reshape" | "Cast" | "Identity":
                found = self.entries(Use(index, 0))
            case "Shape":
                found = self._dimensions(node)
            case "Gather":
                source, where = self.entries(Use(index, 0)), self._integers(Use(index, 1))
                found = None if source is None or where is None else _picked(source, where)
            case "Slice":
                source = self.entries(Use(index, 0))
                bounds = slice_bounds(self._graph, index)
                if source is not None and bounds is not None and len(bounds) == 1:
                    found = source[bounds[0].start : bounds[0].stop : bounds[0].step]
        return self._unknown(name) if found is None else found

    def integers(self, use: Use) -> list[int] | None:
        """The constant integers at `use`; None where they are not constant."""
        return self._integers(use)

    def _integers(self, use: Use) -> list[int] | None:
        array = self._graph.rewritable(self._graph.name_at(use))
        return None if array is None else [int(value) for value in np.ravel(array)]

    def _dimensions(self, node: NodeProto) -> list[Entry] | None:
        rank = self.rank(node.input[0])
        if rank is None:
            return None
        axes = range(rank)[attribute(node, "start", 0) : attribute(node, "end", rank)]
        return [Entry(dimension=(node.input[0], axis)) for axis in axes]

    def _unknown(self, name: str) -> list[Entry] | None:
        """As many unknown entries as the vector `name` has."""
        shape = self.shape(name)
        if shape is None or len(shape) > 1 or not all(isinstance(size, int) for size in shape):
            return None
        return [Entry() for _ in range(int(shape[0]) if shape else 1)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Bounds:
    """What a Slice takes along one axis."""

    axis: int
    start: int
    stop: int
    step: int


def slice_bounds(graph: Graph, index: int) -> list[Bounds] | None:
    """The constant bounds of the Slice node `index`, axes as given; None where they are computed."""
    node = graph.nodes[index]
    lists: list[list[int] | None]
    if graph.opset < 10:
        given = [attribute(node, key, None) for key in ("starts", "ends", "axes")]
        lists = [None if part is None else [int(value) for value in part] for part in given] + [None]
    else:
        lists = []
        for slot in (1, 2, 3, 4):
            name = graph.name_at(Use(index, slot))
            array = graph.rewritable(name) if name else None
            if name and array is None:
                return None
            lists.append(None if array is None else [int(value) for value in np.ravel(array)])
    starts, stops, axes, steps = lists
    if starts is None or stops is None or len(starts) != len(stops):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(axes) == len(steps):
        return None
    return [Bounds(*part) for part in zip(axes, starts, stops, steps, strict=True)]


def _picked(source: Sequence[Entry], where: Sequence[int]) -> list[Entry] | None:
    return [source[place] for place in where] if all(-len(source) <= p < len(source) for p in where) else None


def _light(graph: Graph) -> onnx.ModelProto:
    """A copy without large weights and without what the file says of shapes."""
    light = skeleton(graph.model, sorted_nodes(graph.model.graph))
    del light.graph.value_info[:]
    for value in light.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    # What a caller may override is no constant, whatever its default.
    for tensor in [tensor for tensor in light.graph.initializer if tensor.name in graph.overridable]:
        light.graph.initializer.remove(tensor)
    return light


def _inferred(light: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # whatever stops the inference, what it would have said is merely not known
        return light


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            yield value


def _sizes(value: onnx.ValueInfoProto) -> tuple[Size, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in sizes)
