"""Hidden layers: neurons that can be dropped together, or the reason why not.

From the walk over the graph (`tracing`): atoms that met in one entry of a value are one neuron, atoms that anything
else needs are pinned. What is left are neurons that can go: with their entries in the producers' weights, in every
per-neuron constant on the way (the followers) and in the consumers' weights, and nothing else in the graph can notice.

Neurons that share a value form a *layer*: a chain, a residual stream with all that writes to it and reads from it, a
gate with its two halves, the inputs of a concatenation.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnxdpp.graph.atoms import FIXED, Labels
from onnxdpp.graph.flow import Count, Slicing
from onnxdpp.graph.index import Graph
from onnxdpp.graph.projections import Projection, Refusal, unknown_refusals
from onnxdpp.graph.tracing import Walk


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
        Neurons of one section lie in the same values, as often in each. Of every section one must stay.
    alike : (n,) integer array
        Finer: neurons of equal entries may change places, and no output changes.
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
    alike: Labels = field(repr=False)
    changed: frozenset[str] = field(repr=False)

    @cached_property
    def least(self) -> int:
        """How many neurons must stay: one of each section."""
        return len(np.unique(self.sections))

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
    walk = Walk(graph)
    numbering = _Numbering(walk)
    layers = numbering.layers()
    taken = {name for layer in layers for name in layer.members}
    refusals = unknown_refusals(graph)
    for index, name in walk.names.items():
        reason = walk.refused.get(index)
        if reason is None and name not in taken and index in walk.begun:
            reason = numbering.reason(walk.begun[index])
        if reason:
            refusals.append(Refusal(name, reason))
    return layers, refusals


@dataclass
class _Parts:
    """What belongs to one layer, as it is found."""

    members: list[int] = field(default_factory=list)
    followers: list[Slicing] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    consumers: list[tuple[Projection, Slicing]] = field(default_factory=list)
    values: dict[str, Labels] = field(default_factory=dict)


class _Numbering:
    """From atoms to neurons and layers."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        atoms = walk.found.atoms
        self.roots = atoms.roots(np.arange(len(atoms), dtype=np.intp))
        self.pins = atoms.pins()
        # Atoms that share a value belong to one layer.
        together = type(atoms)()
        together.fresh(len(atoms))
        for carried in walk.found.carried.values():
            own = np.unique(self.roots[carried.labels[carried.labels >= 0]])
            if len(own):
                together.unite(np.repeat(own[:1], len(own)), own, "")
        roots = np.unique(self.roots)
        free = roots[[root not in self.pins for root in roots.tolist()]] if len(roots) else roots
        # Of each atom that is free: its layer, by its first atom, and its number in it.
        self.layer_of = np.full(len(atoms), FIXED, np.intp)
        self.layer_of[free] = together.roots(free)
        self.layer_of = self.layer_of[self.roots]
        self.number = np.full(len(atoms), FIXED, np.intp)
        self.neurons: dict[int, int] = {}
        for root in free.tolist():
            first = int(self.layer_of[root])
            self.number[root] = self.neurons.get(first, 0)
            self.neurons[first] = self.neurons.get(first, 0) + 1
        self.number = self.number[self.roots]

    def layers(self) -> list[Layer]:
        """All layers that something reads, in the order of their first producers."""
        walk = self.walk
        parts: dict[int, _Parts] = {first: _Parts() for first in self.neurons}
        for index, atoms in walk.begun.items():
            for first in self._touched(atoms):
                parts[first].members.append(index)
        for part in walk.found.followers:
            for first in self._touched(part.labels):
                parts[first].followers.append(replace(part, labels=self._numbers(part.labels, first)))
        for count in walk.found.counts:
            for first in self._touched(np.concatenate([count.labels, count.beside])):
                parts[first].counts.append(replace(count, labels=self._numbers(count.labels, first)))
        for projection, axis in walk.consumers:
            for first in self._touched(axis.labels):
                own = replace(axis, labels=self._numbers(axis.labels, first))
                parts[first].consumers.append((projection, own))
        for name, carried in walk.found.carried.items():
            for first in self._touched(carried.labels):
                parts[first].values[name] = self._numbers(carried.labels, first)
        return [self._layer(first, found) for first, found in parts.items() if found.consumers and found.members]

    def _touched(self, labels: Labels) -> list[int]:
        """The layers of these entries; more than one only where some are told apart by pins alone."""
        first = np.unique(self.layer_of[labels[labels >= 0]])
        return [int(layer) for layer in first if layer >= 0]

    def _numbers(self, labels: Labels, first: int) -> Labels:
        """The neuron of each entry in one layer, FIXED for all others."""
        known = np.maximum(labels, 0)
        return np.where((labels >= 0) & (self.layer_of[known] == first), self.number[known], FIXED)

    def _layer(self, first: int, found: "_Parts") -> Layer:
        walk, n = self.walk, self.neurons[first]
        producers = [
            replace(part, labels=self._numbers(part.labels, first))
            for index in found.members
            for part in walk.producers[index]
        ]
        return Layer(
            name=walk.names[found.members[0]],
            n=n,
            members=tuple(walk.names[index] for index in found.members),
            producers=tuple(part for part in producers if (part.labels >= 0).any()),
            followers=tuple(found.followers),
            consumers=tuple(found.consumers),
            counts=tuple(found.counts),
            sections=_classes([_counted(labels, n) for labels in found.values.values()]),
            alike=_classes([*(_counted_by_run(labels, n) for labels in found.values.values()), self._torn(first, n)]),
            changed=frozenset(found.values)
            | {name for part in found.followers if (name := walk.graph.name_at(part.use))},
        )

    def _torn(self, first: int, n: int) -> Labels:
        """(1, n): a number of its own for each neuron of which only some entries go somewhere."""
        own = np.zeros((1, n), np.intp)
        for labels in self.walk.found.torn:
            neurons = self._numbers(self.roots[labels[labels >= 0]], first)
            own[0, neurons[neurons >= 0]] = 1 + neurons[neurons >= 0]
        return own

    def reason(self, atoms: Labels) -> str:
        """Why a producer with these atoms begins no layer."""
        reasons = [self.pins[root] for root in self.roots[atoms].tolist() if root in self.pins]
        return reasons[0] if reasons else "no Gemm, MatMul or Conv reads its neurons"


def _counted(labels: Labels, n: int) -> Labels:
    """(1, n): how often each neuron lies in a value."""
    return np.bincount(labels[labels >= 0], minlength=n)[None]


def _counted_by_run(labels: Labels, n: int) -> Labels:
    """(runs, n): the same for each run of ascending neurons.

    (Two copies of the same neurons side by side are two runs: one may go through an operator that the other does not.)
    """
    own = labels[labels >= 0]
    if len(own) % n == 0 and np.array_equal(own, np.tile(np.arange(n), len(own) // n)):
        return _counted(labels, n)  # every run holds every neuron, as behind the flattening of an NHWC image
    run = np.cumsum(np.diff(own, prepend=own[:1]) < 0)
    return np.bincount(run * n + own, minlength=(run[-1] + 1) * n).reshape(-1, n)


def _classes(rows: list[Labels]) -> Labels:
    """(n,): equal numbers for neurons with equal columns."""
    return np.ravel(np.unique(np.concatenate(rows), axis=1, return_inverse=True)[1]).astype(np.intp)
