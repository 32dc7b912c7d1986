"""Hidden layers: neurons that can be dropped together, or the reason why not.

A *layer* starts at the output of a projection, its producer, and takes in everything that elementwise operators make
of these neurons, until other projections, its consumers, read them. The region is acyclic and closed: each value in
it is read only inside it or by a consumer. Then dropping neuron i means slicing the producer, every per-neuron
constant in the region (the followers) and the consumers' rows, and nothing else in the graph can notice.

What is not provably so is a `Refusal`.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from onnxdpp.graph.index import Graph, Use
from onnxdpp.graph.operators import constant_axis, elementwise
from onnxdpp.graph.projections import Projection, Refusal, Refused, dense_nodes, found_or_refused, projection_at
from onnxdpp.graph.walking import quoted


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
    names = dense_nodes(graph)
    return found_or_refused(graph, lambda index, name: _layer(graph, projection_at(graph, index, name), names))


def _layer(graph: Graph, start: Projection, names: dict[int, str]) -> Layer:
    """The layer that begins at the output of `start`; raises `Refused` if it is not closed."""
    n, axis = start.m, -1
    producer = WeightAxis(start.weight, 0 if start.transposed else 1, np.arange(n)[:, None])
    followers = _gemm_bias_follower(graph, start)
    consumers: list[tuple[Projection, WeightAxis]] = []
    carrying: set[str] = set()
    waiting: list[int] = []

    def carry(name: str) -> None:
        if name in graph.outputs:
            raise Refused(f"its value {quoted(name)} is a graph output")
        if name in graph.captured:
            raise Refused(f"the body of {graph.title(graph.captured[name])} reads its value {quoted(name)}")
        if name in graph.random_values:
            raise Refused(f"its value {quoted(name)} depends on a random operator")
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
        raise Refused("no Gemm or MatMul reads its neurons")
    return Layer(start.name, n, (producer,), tuple(followers), tuple(consumers), frozenset(carrying))


def _pass_on(graph: Graph, index: int, carrying: set[str], axis: int, n: int) -> list[WeightAxis]:
    """Per-neuron constants of the elementwise node `index`; raises `Refused` if it does anything but pass on."""
    node = graph.nodes[index]
    entry = elementwise(graph, node)
    if isinstance(entry, str):
        raise Refused(f"{graph.title(index)} {entry}")
    operands = entry.operand_slots(node)
    followers = []
    for slot, name in enumerate(node.input):
        if slot not in operands:
            if name in carrying:
                raise Refused(f"{graph.title(index)} takes its neurons as a parameter")
        elif name and name not in carrying:
            reason = graph.why_not_constant(name)
            if reason is not None:
                raise Refused(f"{graph.title(index)} joins its neurons with another value: {reason}")
            constant = graph.array(name)
            if constant is None:
                raise Refused(f"{graph.title(index)} reads a constant of a kind that onnxdpp does not know")
            try:
                own = constant_axis(constant.shape, axis, n)
            except ValueError as error:
                raise Refused(f"{graph.title(index)} {error}") from None
            if own is not None:
                followers.append(WeightAxis(Use(index, slot), own, np.arange(n)[:, None]))
    return followers


def _consumer(graph: Graph, index: int, name: str, n: int) -> Projection:
    try:
        consumer = projection_at(graph, index, name)
    except Refused as reason:
        raise Refused(f"its consumer {graph.title(index)} cannot be refitted: {reason}") from None
    if consumer.n != n:
        raise Refused(f"{graph.title(index)} reads {consumer.n} inputs where the layer has {n} neurons")
    return consumer


def _gemm_bias_follower(graph: Graph, start: Projection) -> list[WeightAxis]:
    """A Gemm's own bias, where it has an entry per output, as a follower of the layer that it begins."""
    use = Use(start.node, 2)
    name = graph.name_at(use)
    if not name:
        return []
    constant = graph.rewritable(name)
    if constant is None:
        raise Refused(f"its bias is not constant: {graph.why_not_constant(name)}")
    try:
        own = constant_axis(constant.shape, -1, start.m)
    except ValueError as error:
        raise Refused(f"its bias {error}") from None
    return [] if own is None else [WeightAxis(use, own, np.arange(start.m)[:, None])]
