"""What one node may learn of the neurons that reach it, and say of what becomes of them.

The entries of the table in `operators` are functions of a `Step`. Whatever a step does not say stays as it was: an
output that is not given carries no neurons, and neurons that are neither given on nor read by a projection are
pinned by the caller.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from onnxdpp.graph.atoms import Atoms, Labels
from onnxdpp.graph.attributes import Array, attribute
from onnxdpp.graph.index import Graph, Setting, Use
from onnxdpp.graph.shapes import Shapes, Size
from onnxdpp.graph.walking import quoted


@dataclass(frozen=True)
class Carried:
    """Neurons along one axis of a value.

    Attributes
    ----------
    axis : int
        Counted from the end (negative), so that broadcasting leaves it alone.
    labels : (size,) integer array
        The atom of each entry along it; FIXED for entries that belong to no neuron.
    """

    axis: int
    labels: Labels = field(repr=False)


@dataclass(frozen=True)
class Slicing:
    """Which entries of a constant, along one axis, belong to which neuron.

    Attributes
    ----------
    use : Use
        The constant, as this node reads it.
    axis : int
    labels : (size,) integer array
        In a `Layer`: the neuron of each entry, FIXED for those that always stay.
    """

    use: Use
    axis: int
    labels: Labels = field(repr=False)


@dataclass(frozen=True)
class Count:
    """A number in the graph that counts entries, and so changes when some go.

    Attributes
    ----------
    place : Use or Setting
        The integer constant or the attribute where it stands.
    position : int
        Which of its entries.
    whole : tuple of int
        All its entries as they are (or would be, where the place is left out).
    labels : integer array
        Of the entries that it counts.
    beside : integer array
        Of further entries that make it change: a bound that counts from the end is written anew, from the front,
        whichever entry of its axis goes.
    """

    place: Use | Setting
    position: int
    whole: tuple[int, ...]
    labels: Labels = field(repr=False)
    beside: Labels = field(repr=False, default_factory=lambda: np.empty(0, np.intp))


@dataclass
class Found:
    """What a walk over the graph has found so far.

    Attributes
    ----------
    carried : dict, value name -> Carried
    sizes : dict, value name -> labels
        Values that may hold the number of these entries.
    torn : list of labels
        Neurons of which a node takes some entries and leaves others: no two of them need be alike.
    followers : list of Slicing
    counts : list of Count
    """

    atoms: Atoms = field(default_factory=Atoms)
    carried: dict[str, Carried] = field(default_factory=dict)
    sizes: dict[str, Labels] = field(default_factory=dict)
    torn: list[Labels] = field(default_factory=list)
    followers: list[Slicing] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)


class Refuse(Exception):
    """Raised by an entry: whatever neurons reach this node must stay; the message says what the node does."""


class Step:
    """Node number `index` of `graph`, with the neurons that reach it."""

    def __init__(self, graph: Graph, shapes: Shapes, found: Found, index: int) -> None:
        self.graph = graph
        self.shapes = shapes
        self.index = index
        self.node: NodeProto = graph.nodes[index]
        self.atoms = found.atoms
        self._found = found

    @property
    def title(self) -> str:
        """The node, for people."""
        return self.graph.title(self.index)

    def use(self, slot: int) -> Use:
        """Input number `slot`."""
        return Use(self.index, slot)

    def name(self, slot: int) -> str:
        """The value at `slot`; empty where the node leaves it out."""
        return self.graph.name_at(self.use(slot))

    def carried(self, slot: int) -> Carried | None:
        """The neurons that the value at `slot` carries."""
        return self._found.carried.get(self.name(slot))

    def carried_by(self, name: str) -> Carried | None:
        """The neurons that the value `name` carries."""
        return self._found.carried.get(name)

    def carrying(self) -> list[int]:
        """The slots whose values carry neurons."""
        return [slot for slot in range(len(self.node.input)) if self.carried(slot) is not None]

    def only(self, slot: int = 0) -> Carried:
        """The neurons at `slot`, which must be the only ones here."""
        if self.carrying() != [slot]:
            raise Refuse("takes its neurons as a parameter")
        carried = self.carried(slot)
        assert carried is not None
        return carried

    def constant(self, slot: int) -> Array | None:
        """The constant at `slot`; None where there is none that may be rewritten."""
        name = self.name(slot)
        return self.graph.rewritable(name) if name else None

    def integers(self, slot: int) -> list[int] | None:
        """The constant integers at `slot`."""
        array = self.constant(slot)
        return None if array is None else [int(value) for value in np.ravel(array)]

    def setting(self, name: str, default: object) -> object:
        """The attribute `name`."""
        return attribute(self.node, name, default)

    def whole(self, name: str, default: int) -> int:
        """The integer attribute `name`."""
        return int(attribute(self.node, name, default))

    def shape(self, slot: int) -> tuple[Size, ...] | None:
        """What is known of the shape at `slot`."""
        return self.shapes.shape(self.name(slot))

    def output_shape(self, output: int = 0) -> tuple[Size, ...] | None:
        """What is known of the shape of an output."""
        return self.shapes.shape(self.node.output[output])

    def rank(self, slot: int = 0) -> int:
        """Number of axes at `slot`."""
        rank = self.shapes.rank(self.name(slot))
        if rank is None:
            raise Refuse("has an input of unknown rank")
        return rank

    def front(self, carried: Carried, slot: int = 0) -> int:
        """The axis of the neurons at `slot`, counted from the front."""
        return carried.axis + self.rank(slot)

    def give(self, carried: Carried, output: int = 0) -> None:
        """Let an output carry neurons."""
        if output < len(self.node.output) and self.node.output[output]:
            self._found.carried[self.node.output[output]] = carried

    def sizes(self, slot: int) -> Labels | None:
        """The entries that the value at `slot` may hold the number of."""
        return self._found.sizes.get(self.name(slot))

    def sizes_of(self, name: str) -> Labels | None:
        """The entries that the value `name` may hold the number of."""
        return self._found.sizes.get(name)

    def give_sizes(self, labels: Labels) -> None:
        """Let the output hold the number of `labels`."""
        self._found.sizes[self.node.output[0]] = labels

    def follow(self, slot: int, axis: int, labels: Labels) -> None:
        """Let the constant at `slot` be sliced along with the neurons."""
        self._found.followers.append(Slicing(self.graph.source(self.use(slot)), axis, labels))

    def count(
        self, place: Use | Setting, position: int, whole: Sequence[int], labels: Labels, beside: Labels | None = None
    ) -> None:
        """Let a number count `labels`, and be written anew if any of those or of `beside` goes."""
        further = labels[:0] if beside is None else beside
        self._found.counts.append(Count(place, position, tuple(whole), labels, further))

    def unite(self, left: Labels, right: Labels) -> None:
        """Let neurons stay or go together."""
        self.atoms.unite(left, right, f"{self.title} joins its neurons with entries that always stay")

    def pin(self, labels: Labels, what: str) -> None:
        """Let neurons stay, because of what this node does."""
        self.atoms.pin(labels, f"{self.title} {what}")

    def refuse(self, what: str) -> None:
        """Let all neurons that reach this node stay."""
        for slot in self.carrying():
            carried = self.carried(slot)
            assert carried is not None
            self.pin(carried.labels, what)

    def take(self, labels: Labels, first: int, last: int) -> Labels:
        """The entries from `first` to `last`; neurons that lie on both sides of a bound are torn."""
        inside = labels[first:last]
        outside = np.concatenate([labels[:first], labels[last:]])
        both = np.intersect1d(self.atoms.roots(inside), self.atoms.roots(outside))
        if len(both):
            self._found.torn.append(both)
        return inside

    def unread(self, outputs: Iterable[int]) -> None:
        """Refuse if anybody reads one of these outputs."""
        for output in outputs:
            name = self.node.output[output] if output < len(self.node.output) else ""
            if name and (name in self.graph.uses or name in self.graph.outputs or name in self.graph.captured):
                raise Refuse(f"has its output {quoted(name)} read")
