"""What a model weighs by how many neurons of each layer stay: as a formula, and as the model that it would be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from onnx import ModelProto

from onnxdpp.graph.index import Graph, Use
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.rewriting import Edits, apply, current, sliced


@dataclass(frozen=True)
class Weighing:
    """What a model weighs, by how many neurons of each layer stay.

    Attributes
    ----------
    layers : tuple of Layer
    terms : list of (float, list of (layer, fixed, slope))
        Products: a number times, for each layer, a fixed number of entries and so many for each neuron.
    """

    layers: tuple[Layer, ...]
    terms: list[tuple[float, list[tuple[int, float, float]]]]

    def saved(self, counts: Sequence[int], layer: int, k: int) -> float:
        """How much less the model weighs if `layer` goes from so many neurons to k."""
        fewer = [*counts[:layer], k, *counts[layer + 1 :]]
        return sum(self._term(term, counts) - self._term(term, fewer) for term in self._touching[layer])

    def neighbours(self, layer: int) -> set[int]:
        """The layers whose neurons weigh something else once those of `layer` have changed; itself among them."""
        return {layer}.union(other for term in self._touching[layer] for other, _, _ in self.terms[term][1])

    def _term(self, term: int, counts: Sequence[int]) -> float:
        factor, axes = self.terms[term]
        return factor * prod(fixed + slope * counts[layer] for layer, fixed, slope in axes)

    @cached_property
    def _touching(self) -> dict[int, list[int]]:
        """Layer -> the terms that it has a part in."""
        found: dict[int, list[int]] = {layer: [] for layer in range(len(self.layers))}
        for term, (_, axes) in enumerate(self.terms):
            for layer in {layer for layer, _, _ in axes}:
                found[layer].append(term)
        return found


def weighing(layers: Sequence[Layer], weights: Mapping[Use, float]) -> Weighing:
    """How the sum of `weights`, one for each constant, changes as neurons go.

    Parameters
    ----------
    layers : sequence of Layer
    weights : mapping
        What each constant counts for while it is whole: its entries, or the multiplications with it.
    """
    axes: dict[Use, list[tuple[int, float, float]]] = {}
    for number, layer in enumerate(layers):
        for part in layer.slices:
            if part.use in weights:
                size = len(part.labels)
                fixed = float(np.count_nonzero(part.labels < 0))
                axes.setdefault(part.use, []).append((number, fixed / size, (size - fixed) / size / layer.n))
    return Weighing(tuple(layers), [(weight, axes.get(use, [])) for use, weight in weights.items()])


def weights(graph: Graph, layers: Sequence[Layer], macs: Mapping[int, int] | None) -> dict[Use, float]:
    """What each constant that is sliced counts for: its entries, or the multiplications with it.

    Parameters
    ----------
    graph : Graph
    layers : sequence of Layer
    macs : mapping, optional
        Multiplications by the number of the node, if these are to be counted.
    """
    uses = {part.use for layer in layers for part in layer.slices}
    if macs is None:
        return {use: float(current(graph, {}, use).size) for use in sorted(uses)}
    readers = {projection.weight: projection.node for layer in layers for projection, _ in layer.consumers}
    readers |= {use: use.node for use in uses if use.slot == 1 and use.node in macs and use not in readers}
    return {use: float(macs[node]) for use, node in sorted(readers.items()) if use in uses and node in macs}


def cut(graph: Graph, layers: Sequence[Layer], counts: Sequence[int]) -> ModelProto:
    """The model with so many neurons of each layer, the first ones: for its size.

    Parameters
    ----------
    graph : Graph
    layers : sequence of Layer
    counts : sequence of int
        How many stay; at least one of each section.
    """
    edits: Edits = {}
    changed: frozenset[str] = frozenset()
    for layer, k in zip(layers, counts, strict=True):
        if k < layer.n:
            first = [int(np.flatnonzero(layer.sections == section)[0]) for section in np.unique(layer.sections)]
            others = np.setdiff1d(np.arange(layer.n), first)[: max(0, k - len(first))]
            edits = sliced(graph, edits, layer, np.sort(np.concatenate([first, others]).astype(np.intp)))
            changed |= layer.changed
    return apply(graph, edits, changed)
