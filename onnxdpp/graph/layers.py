"""Finding what can be pruned: hidden layers (neurons) and projections (edges), or the reason why not.

A *projection* is one Gemm or MatMul with a constant weight: ``y = x W + b``. A *layer* starts at the output of a
projection, its producer, and takes in everything that elementwise operators make of these neurons, until other
projections, its consumers, read them. The region is acyclic and closed: each value in it is read only inside it or
by a consumer. Then dropping neuron i means slicing the producer, every per-neuron constant in the region (the
followers) and the consumers' rows, and nothing else in the graph can notice.

What is not provably so is a `Refusal`, a value with the reason, never an exception and never a guess.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxdpp.errors import ModelError
from onnxdpp.graph.index import ONNX_DOMAINS, Array, Graph, Use, attribute
from onnxdpp.graph.operators import constant_axis, elementwise
from onnxdpp.graph.walking import nodes_below, quoted

FLOATS = (np.float16, np.float32, np.float64)
SMALLEST_BETA = 1e-4
OLDEST_OPSET = 7  # before it, broadcasting was asked for by attributes


@dataclass(frozen=True)
class Refusal:
    """A place that could have been pruned but is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class WeightAxis:
    """Which entries of a constant, along one axis, belong to each neuron.

    Attributes
    ----------
    use : Use
        The constant, as this node reads it.
    axis : int
    positions : (n, block) integer array
        Row i: where neuron i's entries lie (one each behind a Gemm; many behind a Flatten).
    """

    use: Use
    axis: int
    positions: NDArray[np.intp] = field(repr=False)


@dataclass(frozen=True)
class Bias:
    """The constant that an intercept goes into: ``y = scale x W + factor constant``."""

    use: Use
    factor: float


@dataclass(frozen=True)
class Projection:
    """One Gemm or MatMul with a constant weight, and where its input is observed.

    Attributes
    ----------
    name : str
    node : int
    tap : str
        The value that enters it, neurons along the last axis.
    weight : Use
    transposed : bool
        Whether the constant is stored (m, n) rather than (n, m).
    scale : float
        Gemm's alpha.
    n, m : int
        Inputs and outputs.
    bias : Bias or None
        None: no constant is added (yet) that could hold an intercept.
    """

    name: str
    node: int
    tap: str
    weight: Use
    transposed: bool
    scale: float
    n: int
    m: int
    bias: Bias | None

    def effective(self, stored: Array) -> NDArray[np.float64]:
        """The matrix that acts, (n, m) float64, from the constant as stored."""
        weights = np.asarray(stored, np.float64)
        return self.scale * (weights.T if self.transposed else weights)

    def stored(self, effective: NDArray[np.float64]) -> NDArray[np.float64]:
        """The constant to store, from the matrix that is to act."""
        weights = effective / self.scale
        return weights.T if self.transposed else weights


@dataclass(frozen=True)
class Layer:
    """A hidden layer: neurons that can be dropped together.

    `slices` name every constant with an entry per neuron, the producer's and followers' and also the consumers';
    `changed` the values whose shape changes.
    """

    name: str
    n: int
    producers: tuple[WeightAxis, ...]
    followers: tuple[WeightAxis, ...]
    consumers: tuple[tuple[Projection, WeightAxis], ...]
    changed: frozenset[str] = field(repr=False)

    @property
    def slices(self) -> tuple[WeightAxis, ...]:
        """All constants with an entry per neuron."""
        return (*self.producers, *self.followers, *(axis for _, axis in self.consumers))


class _Refused(Exception):
    """Ends the search of one layer; its message is the reason."""


def find_projections(graph: Graph) -> tuple[list[Projection], list[Refusal]]:
    """Every dense weight whose edges can be pruned, in topological order, and those that cannot.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    list of Projection, list of Refusal
        Names are unique among both.
    """
    found: list[Projection] = []
    refused = _refuse_unknown(graph)
    for index, name in _dense_nodes(graph).items():
        try:
            found.append(_projection(graph, index, name))
        except _Refused as reason:
            refused.append(Refusal(name, str(reason)))
    return found, refused


def find_layers(graph: Graph) -> tuple[list[Layer], list[Refusal]]:
    """Every hidden layer that can provably be cut, in topological order, and the candidates that cannot.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    list of Layer, list of Refusal
        Names are unique among both.
    """
    found: list[Layer] = []
    refused = _refuse_unknown(graph)
    names = _dense_nodes(graph)
    for index, name in names.items():
        try:
            found.append(_layer(graph, _projection(graph, index, name), names))
        except _Refused as reason:
            refused.append(Refusal(name, str(reason)))
    return found, refused


def _layer(graph: Graph, start: Projection, names: dict[int, str]) -> Layer:
    """The layer that begins at the output of `start`; raises `_Refused` if it is not closed."""
    n, axis = start.m, -1
    producer = WeightAxis(start.weight, 0 if start.transposed else 1, np.arange(n)[:, None])
    followers = _gemm_bias_follower(graph, start)
    consumers: list[tuple[Projection, WeightAxis]] = []
    carrying: set[str] = set()
    waiting: list[int] = []

    def carry(name: str) -> None:
        if name in graph.outputs:
            raise _Refused(f"its value {quoted(name)} is a graph output")
        if name in graph.captured:
            raise _Refused(f"the body of {graph.title(graph.captured[name])} reads its value {quoted(name)}")
        if name in graph.random_values:
            raise _Refused(f"its value {quoted(name)} depends on a random operator")
        carrying.add(name)
        for use in graph.uses.get(name, []):
            heappush(waiting, use.node)

    carry(graph.nodes[start.node].output[0])
    while waiting:
        index = heappop(waiting)
        while waiting and waiting[0] == index:
            heappop(waiting)
        node = graph.nodes[index]
        if index in names and [slot for slot, name in enumerate(node.input) if name in carrying] == [0]:
            consumer = _consumer(graph, index, names[index], n)
            consumers.append((consumer, WeightAxis(consumer.weight, int(consumer.transposed), np.arange(n)[:, None])))
            continue
        followers += _pass_on(graph, index, carrying, axis, n)
        for name in node.output:
            if name:
                carry(name)
    if not consumers:
        raise _Refused("no Gemm or MatMul reads its neurons")
    return Layer(start.name, n, (producer,), tuple(followers), tuple(consumers), frozenset(carrying))


def _pass_on(graph: Graph, index: int, carrying: set[str], axis: int, n: int) -> list[WeightAxis]:
    """Per-neuron constants of the elementwise node `index`; raises `_Refused` if it does anything but pass on."""
    node = graph.nodes[index]
    entry = elementwise(graph, node)
    if isinstance(entry, str):
        raise _Refused(f"{graph.title(index)} {entry}")
    operands = entry.operand_slots(node)
    followers = []
    for slot, name in enumerate(node.input):
        if slot not in operands:
            if name in carrying:
                raise _Refused(f"{graph.title(index)} takes its neurons as a parameter")
        elif name and name not in carrying:
            reason = graph.why_not_constant(name)
            if reason is not None:
                raise _Refused(f"{graph.title(index)} joins its neurons with another value: {reason}")
            constant = graph.array(name)
            if constant is None:
                raise _Refused(f"{graph.title(index)} reads a constant of a kind that onnxdpp does not know")
            try:
                own = constant_axis(constant.shape, axis, n)
            except ValueError as error:
                raise _Refused(f"{graph.title(index)} {error}") from None
            if own is not None:
                followers.append(WeightAxis(Use(index, slot), own, np.arange(n)[:, None]))
    return followers


def _consumer(graph: Graph, index: int, name: str, n: int) -> Projection:
    try:
        consumer = _projection(graph, index, name)
    except _Refused as reason:
        raise _Refused(f"its consumer {graph.title(index)} cannot be refitted: {reason}") from None
    if consumer.n != n:
        raise _Refused(f"{graph.title(index)} reads {consumer.n} inputs where the layer has {n} neurons")
    return consumer


def _gemm_bias_follower(graph: Graph, start: Projection) -> list[WeightAxis]:
    """A Gemm's own bias, where it has an entry per output, as a follower of the layer that it begins."""
    use = Use(start.node, 2)
    name = graph.name_at(use)
    if not name:
        return []
    constant = graph.array(name) if graph.why_not_constant(name) is None else None
    if constant is None:
        raise _Refused(f"its bias is not constant: {graph.why_not_constant(name)}")
    try:
        own = constant_axis(constant.shape, -1, start.m)
    except ValueError as error:
        raise _Refused(f"its bias {error}") from None
    return [] if own is None else [WeightAxis(use, own, np.arange(start.m)[:, None])]


def _projection(graph: Graph, index: int, name: str) -> Projection:
    """The dense node `index` as a Projection; raises `_Refused` if its weight cannot be changed."""
    if graph.opset < OLDEST_OPSET:
        raise _Refused(
            f"the model is of opset {graph.opset}; onnxdpp needs at least {OLDEST_OPSET} "
            "(onnx.version_converter can raise it)"
        )
    node = graph.nodes[index]
    weight = Use(index, 1)
    value = graph.name_at(weight)
    reason = graph.why_not_constant(value)
    if reason is not None:
        left = graph.why_not_constant(node.input[0]) is None
        raise _Refused("its constant stands on the left" if left else f"its weight is not constant: {reason}")
    array = graph.array(value)
    if array is not None and 0 in array.shape:
        raise _Refused(f"its weight {quoted(value)} is empty: {array.shape}")
    if array is None or array.ndim != 2 or array.dtype not in FLOATS:
        shown = "of an unknown kind" if array is None else f"{array.dtype} {array.shape}"
        raise _Refused(f"its weight {quoted(value)} is {shown}, not a matrix of float16, float32 or float64")
    if (other := graph.shared_with(weight)) is not None:
        raise _Refused(f"its weight {quoted(value)} is shared with {other}")
    gemm = node.op_type == "Gemm"
    if gemm and attribute(node, "transA", 0):
        raise _Refused("its input is transposed (transA)")
    scale = float(attribute(node, "alpha", 1.0)) if gemm else 1.0
    if scale == 0 or not np.isfinite(scale):
        raise _Refused(f"its alpha is {scale:g}")
    if gemm and not np.isfinite(beta := float(attribute(node, "beta", 1.0))):
        raise _Refused(f"its beta is {beta:g}")
    if node.input[0] in graph.random_values:
        raise _Refused(f"its input {quoted(node.input[0])} depends on a random operator")
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise ModelError(
            f"The weight {quoted(value)} of {graph.title(index)} holds {bad} non-finite entries (NaN or infinity). "
            "Export the model again from sound weights."
        )
    transposed = gemm and bool(attribute(node, "transB", 0))
    n, m = array.shape[::-1] if transposed else array.shape
    bias = (_gemm_bias(graph, index, m) if gemm else None) or _added_bias(graph, index, m)
    return Projection(name, index, node.input[0], weight, transposed, scale, n, m, bias)


def _gemm_bias(graph: Graph, index: int, m: int) -> Bias | None:
    use = Use(index, 2)
    name, beta = graph.name_at(use), float(attribute(graph.nodes[index], "beta", 1.0))
    constant = graph.array(name) if name and graph.why_not_constant(name) is None else None
    # Behind an extreme beta the constant could not hold an intercept in its own type.
    usable = SMALLEST_BETA <= abs(beta) <= 1 / SMALLEST_BETA
    return Bias(use, beta) if usable and constant is not None and _holds_intercept(constant, m) else None


def _added_bias(graph: Graph, index: int, m: int) -> Bias | None:
    """The constant that an Add or Sub alone adds to the output of a MatMul, or of a Gemm without one of its own."""
    output = graph.nodes[index].output[0]
    uses = graph.uses.get(output, [])
    if len(uses) != 1 or output in graph.outputs or output in graph.captured:
        return None
    reader = graph.nodes[uses[0].node]
    if reader.op_type not in ("Add", "Sub") or reader.domain not in ONNX_DOMAINS:
        return None
    use = Use(uses[0].node, 1 - uses[0].slot)
    name = graph.name_at(use)
    constant = graph.array(name) if graph.why_not_constant(name) is None else None
    if constant is None or not _holds_intercept(constant, m):
        return None
    # (x W) - c and c - (x W) alike: what is added to x W is taken from c.
    return Bias(use, 1.0 if reader.op_type == "Add" else -1.0)


def _holds_intercept(constant: Array, m: int) -> bool:
    """Whether an intercept for m outputs may go into `constant`.

    One of another length breaks the model, which onnx.checker lets pass, and onnxruntime until it runs. Minus infinity
    masks an output.
    """
    return (not constant.ndim or constant.shape[-1] in (1, m)) and bool(np.isfinite(constant).all())


def _names(graph: Graph) -> list[str]:
    """A unique name for every node: its own, else a dense node's weight's, else its first output's."""
    wishes = []
    for node in graph.nodes:
        fallback = node.input[1] if _is_dense(node) else next(iter(node.output), node.op_type)
        wishes.append(node.name or fallback)
    taken, counts = set(wishes), dict[str, int]()
    names = []
    for wish in wishes:
        name, count = wish, counts.get(wish, 0) + 1
        while count > 1 and (name := f"{wish}#{count}") in taken:
            count += 1
        counts[wish] = count
        taken.add(name)
        names.append(name)
    return names


def _is_dense(node: NodeProto) -> bool:
    return node.op_type in ("Gemm", "MatMul") and node.domain in ONNX_DOMAINS


def _dense_nodes(graph: Graph) -> dict[int, str]:
    """Number and name of every Gemm and MatMul, in topological order."""
    return {index: name for index, name in enumerate(_names(graph)) if _is_dense(graph.nodes[index])}


CONVOLUTIONS = ("Conv", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "RNN")
QUANTIZED = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "QGemm", "DynamicQuantizeMatMul")


def _refuse_unknown(graph: Graph) -> list[Refusal]:
    """Nodes with weights that onnxdpp does not prune (yet), each with its reason."""
    reasons = ((name, _why_unknown(graph, node)) for name, node in zip(_names(graph), graph.nodes, strict=True))
    return [Refusal(name, reason) for name, reason in reasons if reason is not None]


def _why_unknown(graph: Graph, node: NodeProto) -> str | None:
    if node.op_type in QUANTIZED:
        return f"{node.op_type} is quantized: prune before you quantize"
    if (node.domain, node.op_type) in graph.functions:
        return f"the model-local function {quoted(node.op_type)} is not looked into"
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type in CONVOLUTIONS:
        return f"{node.op_type} is not supported yet"
    if node.op_type in RECURRENT:
        return f"{node.op_type} is recurrent: its gates share one weight"
    inner = [part.op_type for part in nodes_below([node])][1:]
    dense = sum(kind in ("Gemm", "MatMul", *CONVOLUTIONS, *RECURRENT) for kind in inner)
    if dense:
        return f"{dense} layers lie in the body of {node.op_type}, which is not looked into"
    return None
