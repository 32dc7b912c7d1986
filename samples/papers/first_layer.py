"""The first layer of a network, observed once and pruned as often as one likes.

What enters the first layer never changes while only that layer is pruned. `onnxdpp.prune` observes it anew in every
call; here the moments are summed once and each choice is used for several refits. All else is the package's own:
`FirstLayer.model` gives the weights that `onnxdpp.prune` gives with the same arguments (the tests hold it to that).
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
import onnx
from numpy.random import SeedSequence
from numpy.typing import NDArray

from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import Fit, refit_edges, refit_neurons, relative_loss
from onnxdpp.algebra.selection import Rule, choose_edges, choose_neurons, edge_beta, neuron_beta
from onnxdpp.graph.batches import input_specs, open_batches
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.projections import find_projections
from onnxdpp.graph.rewriting import apply, in_order, reweighted, sliced, sliced_constant
from onnxdpp.observation import Reading, observe, readings, readings_of
from onnxdpp.opening import opened
from onnxdpp.options import MEMORY, Options

Indices = NDArray[np.intp]


class FirstLayer:
    """The first layer of a model.

    Parameters
    ----------
    model : path
        A chain of Gemm nodes; the neurons of its first have one consumer.
    calib : path
        Rows to observe, all of them.
    executor : Executor
        Where the outputs of a projection are solved side by side. BLAS should be held to one thread meanwhile.
    """

    def __init__(self, model: Path, calib: Path, executor: Executor) -> None:
        proto, folder, _ = opened(model)
        self._graph = Graph(in_order(proto), folder)
        self._batches = open_batches(calib, input_specs(self._graph.model))
        self._executor = executor
        self.edges = find_projections(self._graph)[0][0]
        self.neurons = find_layers(self._graph)[0][0]

    @property
    def name(self) -> str:
        """What both its edges and its neurons go by."""
        return self.edges.name

    def width(self, unit: str) -> int:
        """How many neurons it has, or edges into each."""
        return self.neurons.n if unit == "neuron" else self.edges.n

    def choose(self, unit: str, k: int, method: str, *, beta: float, epsilon: float, seed: int) -> Indices:
        """Which stay: (k,) neurons, or (k, m) edges, a column for each output; as `onnxdpp.prune` chooses.

        Parameters
        ----------
        unit : {"neuron", "edge"}
        k : int
            Neurons that stay, or edges into each output.
        method : {"dpp-sample", "random", "importance"}
        beta, epsilon : float
            Of the rbf kernel, on mean squared distances (the papers' is beta over the number of rows, on sums).
        seed : int
        """
        rule = Rule(method, beta=beta, epsilon=epsilon)
        source = SeedSequence(seed, spawn_key=(crc32(self.name.encode()),))
        if unit == "neuron":
            seen = [self._hidden[1]]
            return choose_neurons(seen, self.neurons.n, k, rule, neuron_beta(seen, self.neurons.n, rule), source)
        moments = self._entering[1].moments
        return choose_edges(moments, k, rule, edge_beta(moments, rule), source, self._executor)

    def model(self, unit: str, keep: Indices, refit: str) -> tuple[onnx.ModelProto, float | None]:
        """The model with only `keep` left, and the relative loss at the outputs that were refitted.

        Parameters
        ----------
        unit : {"neuron", "edge"}
        keep : integer array
            From `choose`.
        refit : {"none", "linear"}
        """
        if unit == "neuron":
            reading, inputs = self._hidden
            fit = refit_neurons(inputs.moments, inputs.kept(keep), refit)
            edits, changed = sliced(self._graph, {}, self.neurons, keep), self.neurons.changed
            ((projection, _),) = reading.parts
            for use, whole in reweighted(self._graph, projection, fit.weights, None).items():
                edits[use] = sliced_constant(use, whole, [(self.neurons, keep)])
        else:
            inputs = self._entering[1]
            fit = refit_edges(inputs.moments, keep, refit, self._executor)
            edits, changed = reweighted(self._graph, self.edges, fit.weights, None), frozenset[str]()
        return apply(self._graph, edits, changed), relative_loss([(inputs.moments, fit)])

    @cached_property
    def _entering(self) -> tuple[Reading, Inputs]:
        """What enters the layer."""
        n = self.edges.n // self.edges.block
        return self._observed(readings(self._graph, [(self.edges, np.arange(n))], lambda part: np.arange(part.m), MEMORY))

    @cached_property
    def _hidden(self) -> tuple[Reading, Inputs]:
        """What its neurons pass on, where they are consumed: after the sigmoid."""
        return self._observed(readings_of(self._graph, self.neurons, MEMORY))

    def _observed(self, wanted: Sequence[Reading]) -> tuple[Reading, Inputs]:
        (reading,) = wanted
        options = Options(1.0, refit="linear")
        ((inputs,), _) = observe(
            self._graph, self._graph, wanted, self._batches, "cpu", options, self._executor,
            lambda fraction: None, self.name,
        )  # fmt: skip
        return reading, inputs

