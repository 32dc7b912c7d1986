"""Hidden layers: neurons that can be dropped together, or the reason why not.

One walk over the graph, in topological order. Every output of a projection begins as an atom; the operator table says
what the nodes behind do with them, and a projection that reads them is their consumer. Atoms that meet in one entry of
a value become one neuron; atoms that anything else needs are pinned. What is left are neurons that can go: with their
entries in the producers' weights, in every per-neuron constant on the way (the followers) and in the consumers'
weights, and nothing else in the graph can notice.

Neurons that share a value form a *layer*: a chain, a residual stream with all that writes to it and reads from it, a
gate with its two halves, the inputs of a concatenation.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from onnxdpp.graph.atoms import FIXED, Labels
from onnxdpp.graph.flow import Carried, Count, Found, Refuse, Slicing, Step
from onnxdpp.graph.index import Graph, Setting
from onnxdpp.graph.operators import constant_axis, pass_on
from onnxdpp.graph.projections import (
    CONVOLUTIONS,
    Projection,
    Refusal,
    Refused,
    projection_at,
    unknown_refusals,
    weighted_nodes,
)
from onnxdpp.graph.shapes import Shapes
from onnxdpp.graph.sizes import watch
from onnxdpp.graph.walking import quoted


@dataclass(frozen=True)
class Layer:
    """Neurons that stay or go by one choice.

    Attributes
    ----------
    name : str
        Of the first producer.
    n : int
        Neurons. Where there is one producer, neuron i is its output i (unless groups tie several).
    members : tuple of str
        Names of all producers.
    producers, followers : tuple of Slicing
        Constants with an entry for each neuron, or several; labels are neurons here, or FIXED.
    consumers : tuple of (Projection, Slicing)
        What reads the neurons and is refitted; labels along the input axis of its constant.
    counts : tuple of Count
        Numbers that change with the number of neurons.
    sections : (n,) integer array
        Neurons of one section are alike: they lie in the same values, as often in each. Of every section one must stay.
    changed : set of str
        Values whose shape changes.
    """

    name: str
    n: int
    members: tuple[str, ...]
    producers: tuple[Slicing, ...]
    followers: tuple[Slicing, ...]
    consumers: tuple[tuple[Projection, Slicing], ...]
    counts: tuple[Count, ...]
    sections: Labels = field(repr=False)
    changed: frozenset[str] = field(repr=False)

    @property
    def slices(self) -> tuple[Slicing, ...]:
        """All constants with entries of neurons."""
        return (*self.producers, *self.followers, *(part for _, part in self.consumers))


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
    return _Walk(graph).result()


class _Walk:
    """One walk over `graph`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes = Shapes(graph)
        self.found = Found()
        self.names = weighted_nodes(graph)
        self.producers: dict[int, list[Slicing]] = {}
        self.begun: dict[int, Labels] = {}
        self.consumers: list[tuple[Projection, Slicing]] = []
        self.refused: dict[int, str] = {}
        for index in range(len(graph.nodes)):
            self._visit(index)

    def _visit(self, index: int) -> None:
        step = Step(self.graph, self.shapes, self.found, index)
        before = len(self.found.followers), len(self.found.counts)
        try:
            if index in self.names:
                self._weighted(step)
            elif step.carrying():
                pass_on(step)
        except Refuse as reason:
            # What was said before the reason came up holds no longer.
            del self.found.followers[before[0] :], self.found.counts[before[1] :]
            for name in step.node.output:
                self.found.carried.pop(name, None)
            step.refuse(str(reason))
        watch(step)
        for name in step.node.output:
            self._pin_value(name)

    def _pin_value(self, name: str) -> None:
        carried = self.found.carried.get(name)
        if carried is None:
            return
        graph, reason = self.graph, None
        if name in graph.outputs:
            reason = f"its value {quoted(name)} is a graph output"
        elif name in graph.captured:
            reason = f"the body of {graph.title(graph.captured[name])} reads its value {quoted(name)}"
        elif name in graph.random_values:
            reason = f"its value {quoted(name)} depends on a random operator"
        if reason is not None:
            self.found.atoms.pin(carried.labels, reason)

    def _weighted(self, step: Step) -> None:
        """A Gemm, MatMul or convolution: consumer of what it reads, producer of what it writes, or neither."""
        index, carrying = step.index, step.carrying()
        try:
            part = projection_at(self.graph, index, self.names[index])
        except Refused as reason:
            self.refused[index] = str(reason)
            for slot in carrying:
                carried = step.carried(slot)
                assert carried is not None
                self.found.atoms.pin(carried.labels, f"its consumer {step.title} cannot be refitted: {reason}")
            return
        if carrying and carrying != [0]:
            self.refused[index] = "another of its inputs than the first carries neurons"
            raise Refuse("takes its neurons as a parameter")
        carried = step.carried(0)
        if carried is not None and carried.axis != part.axis:
            self._across(step, part, carried)
            return
        weight = step.graph.array(step.graph.name_at(part.weight))
        assert weight is not None
        if carried is not None:
            entries = weight.shape[part.input_axis] * (part.groups if part.patch and not part.patch.stuffing else 1)
            if entries != len(carried.labels):
                raise Refuse(f"reads {entries} inputs where the layer has {len(carried.labels)} neurons")
        if part.groups > 1 and part.n == part.block:
            self._depthwise(step, part, carried)
            return
        if carried is not None:
            labels = _tied(step, part, carried.labels)
            self.consumers.append((part, Slicing(part.weight, part.input_axis, labels)))
        try:
            self._begin(step, part, _bias_axis(step, part))
        except Refused as reason:
            self.refused[index] = str(reason)

    def _across(self, step: Step, part: Projection, carried: Carried) -> None:
        """Neurons that lie along another axis than the one that is mixed pass through a MatMul."""
        if step.node.op_type != "MatMul":
            raise Refuse("mixes neurons")
        self.refused[part.node] = "its input also carries other neurons, along another axis"
        step.give(carried)

    def _depthwise(self, step: Step, part: Projection, carried: Carried | None) -> None:
        """A convolution of each channel by itself: its weights and its number of groups go with the channels."""
        if carried is None:
            self.refused[part.node] = "depthwise: its channels come and go with those of its input, which stay"
            return
        labels = np.repeat(carried.labels, part.m // part.groups)
        self.found.followers.append(Slicing(part.weight, 0, labels if part.input_axis == 1 else carried.labels))
        if step.name(2):
            step.follow(2, 0, labels)
        step.count(Setting(step.index, "group"), 0, (part.groups,), carried.labels)
        step.give(Carried(carried.axis, labels))
        self.refused[part.node] = ""  # goes with its input: neither a layer nor left alone

    def _begin(self, step: Step, part: Projection, bias: int | None) -> None:
        """The outputs of `part` are neurons; of a grouped one, all groups keep the same."""
        atoms = self.found.atoms.fresh(part.m // part.groups)
        labels = np.tile(atoms, part.groups)
        stored = atoms if part.output_axis == 1 and part.patch is not None else labels
        self.producers[part.node] = [Slicing(part.weight, part.output_axis, stored)]
        if bias is not None:
            self.producers[part.node].append(Slicing(step.graph.source(step.use(2)), bias, labels))
        self.begun[part.node] = atoms
        step.give(Carried(part.axis, labels))

    def result(self) -> tuple[list[Layer], list[Refusal]]:
        """Layers and refusals."""
        numbering = _Numbering(self)
        layers = [layer for layer in map(numbering.layer, numbering.groups()) if layer is not None]
        taken = {name for layer in layers for name in layer.members}
        refusals = unknown_refusals(self.graph)
        for index, name in self.names.items():
            reason = self.refused.get(index)
            if reason is None and name not in taken and index in self.begun:
                reason = numbering.reason(self.begun[index])
            if reason:
                refusals.append(Refusal(name, reason))
        return layers, refusals


class _Numbering:
    """From atoms to neurons and layers."""

    def __init__(self, walk: _Walk) -> None:
        self.walk = walk
        atoms = walk.found.atoms
        self.roots = atoms.roots(np.arange(len(atoms), dtype=np.intp))
        self.pins = atoms.pins()
        # Atoms that share a value, or a number that counts them, belong to one layer.
        self.together = type(atoms)()
        self.together.fresh(len(atoms))
        for labels in [carried.labels for carried in walk.found.carried.values()]:
            own = np.unique(self.roots[labels[labels >= 0]])
            if len(own):
                self.together.unite(np.repeat(own[:1], len(own)), own, "")

    def groups(self) -> list[Labels]:
        """The neurons of each layer, as sorted roots, without what is pinned; layers in the order of producers."""
        roots = np.unique(self.roots)
        free = roots[[root not in self.pins for root in roots.tolist()]] if len(roots) else roots
        groups: dict[int, list[int]] = {}
        for root, first in zip(free.tolist(), self.together.roots(free).tolist(), strict=True):
            groups.setdefault(first, []).append(root)
        return [np.array(group, np.intp) for group in groups.values()]

    def layer(self, neurons: Labels) -> Layer | None:
        """The layer of these neurons; None where nothing reads them."""
        walk, graph = self.walk, self.walk.graph
        number = np.full(len(self.roots) + 1, FIXED, np.intp)
        number[neurons] = np.arange(len(neurons))

        def mapped(labels: Labels) -> Labels:
            return np.where(labels < 0, FIXED, number[self.roots[np.maximum(labels, 0)]])

        def touched(parts: Iterable[Slicing]) -> list[Slicing]:
            found = [replace(part, labels=mapped(part.labels)) for part in parts]
            return [part for part in found if (part.labels >= 0).any()]

        members = [index for index, atoms in walk.begun.items() if (mapped(atoms) >= 0).any()]
        consumers = [
            (part, replace(axis, labels=labels))
            for part, axis in walk.consumers
            if ((labels := mapped(axis.labels)) >= 0).any()
        ]
        if not consumers or not members:
            return None
        counts = [replace(count, labels=mapped(count.labels)) for count in walk.found.counts]
        values = {
            name: labels
            for name, carried in walk.found.carried.items()
            if ((labels := mapped(carried.labels)) >= 0).any()
        }
        return Layer(
            name=walk.names[members[0]],
            n=len(neurons),
            members=tuple(walk.names[index] for index in members),
            producers=tuple(touched(part for index in members for part in walk.producers[index])),
            followers=tuple(touched(walk.found.followers)),
            consumers=tuple(consumers),
            counts=tuple(count for count in counts if (count.labels >= 0).any()),
            sections=_sections(values.values(), len(neurons)),
            changed=frozenset(values)
            | {name for part in touched(walk.found.followers) if (name := graph.name_at(part.use))},
        )

    def reason(self, atoms: Labels) -> str:
        """Why a producer with these atoms begins no layer."""
        reasons = [self.pins[root] for root in self.roots[atoms].tolist() if root in self.pins]
        return reasons[0] if reasons else "no Gemm, MatMul or Conv reads its neurons"


def _sections(values: Iterable[Labels], n: int) -> Labels:
    """Which neurons lie in the same values, as often in each."""
    counts = [np.bincount(labels[labels >= 0], minlength=n) for labels in values]
    table = np.unique(np.stack(counts, axis=1), axis=0, return_inverse=True)[1]
    return np.ravel(table).astype(np.intp)


def _tied(step: Step, part: Projection, labels: Labels) -> Labels:
    """Labels along the input axis of the constant; channels in the same place of each group stay or go together."""
    if part.groups == 1:
        return labels
    split = labels.reshape(part.groups, -1)
    step.unite(np.tile(split[0], part.groups), labels)
    return split[0] if part.input_axis == 1 else labels


def _bias_axis(step: Step, part: Projection) -> int | None:
    """The axis of the third input with an entry for each output, if there is one; raises `Refused`."""
    name = step.name(2)
    if not name:
        return None
    constant = step.graph.rewritable(name)
    if constant is None:
        raise Refused(f"its bias is not constant: {step.graph.why_not_constant(name)}")
    if step.node.op_type in CONVOLUTIONS:
        return 0
    try:
        return constant_axis(constant.shape, -1, part.m)
    except ValueError as error:
        raise Refused(f"its bias {error}") from None
