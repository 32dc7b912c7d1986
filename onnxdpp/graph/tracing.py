"""One walk over the graph, in topological order, that follows every neuron to all that reads it.

Every output of a projection begins as an atom; the operator table says what the nodes behind do with them, and a
projection that reads them is their consumer.
"""

import numpy as np

from onnxdpp.graph.atoms import Labels
from onnxdpp.graph.flow import Carried, Found, Refuse, Slicing, Step
from onnxdpp.graph.index import Graph, Setting
from onnxdpp.graph.operators import constant_axis, pass_on
from onnxdpp.graph.projections import CONVOLUTIONS, Projection, Refused, projection_at, weighted_nodes
from onnxdpp.graph.shapes import Shapes
from onnxdpp.graph.sizes import watch
from onnxdpp.graph.walking import quoted


class Walk:
    """One walk over `graph`.

    Attributes
    ----------
    found : Found
    names : dict, number of a node with a weight -> its name
    producers : dict, number of a node -> constants with an entry for each of its outputs
    begun : dict, number of a node -> atoms of its outputs
    consumers : list of (Projection, Slicing)
    refused : dict, number of a node -> why its outputs are no neurons; empty where they are those of its input
    """

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
            if index in self.names:
                self.refused.setdefault(index, str(reason))
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
