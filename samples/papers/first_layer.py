"""The first layer of a network, observed once and pruned as often as one likes.

What enters the first layer never changes while only that layer is pruned. `onnxdpp.prune` observes it anew in every
call; here the moments are summed once and each choice is used for several refits. All else is the package's own:
`FirstLayer.model` gives the weights that `onnxdpp.prune` gives with the same arguments (the tests hold it to that).

One shortcut: the papers' refit minimises ``(w - w0)' G (w - w0)`` where w is zero on the dropped edges D, so that with
``P = G⁻¹`` it is ``w = w0 - P_D (P_DD)⁻¹ w0_D``: a system of the dropped edges instead of the kept ones. It is taken
where fewer are dropped than kept and G is well enough conditioned (`CONDITION`; MNIST, with its dead pixels, is not),
and gives the same weights but for rounding.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
import onnx
from draws import draw_edges
from numpy.random import SeedSequence
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxdpp.algebra.moments import Matrix, Moments
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import RIDGE, Fit, refit_edges, refit_neurons, relative_loss
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

CONDITION = 1e10  # in the 1-norm: weights then have six digits left, about what float32 holds


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

    def draws(self, k: int, repeats: int, *, beta: float, epsilon: float, seed: int) -> Indices:
        """Which edges stay, (repeats, k, m), by several draws from the k-DPP of each output; see `draw_edges`."""
        moments = self._entering[1].moments
        return draw_edges(
            moments.gram, moments.weights, k, repeats, beta=beta, epsilon=epsilon, seed=seed, executor=self._executor
        )

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
            fit = self._refitted(inputs.moments, keep, refit)
            edits, changed = reweighted(self._graph, self.edges, fit.weights, None), frozenset[str]()
        return apply(self._graph, edits, changed), relative_loss([(inputs.moments, fit)])

    def _refitted(self, moments: Moments, keep: Indices, refit: str) -> Fit:
        """New weights of the edges `keep` (k, m)."""
        n, m = moments.weights.shape
        inverse = self._inverse if refit == "linear" and n < 2 * len(keep) else None
        if inverse is None:
            return refit_edges(moments, keep, refit, self._executor)
        gone = np.ones((n, m), bool)
        gone[keep, np.arange(m)] = False

        def solved(j: int) -> Matrix:
            dropped = np.flatnonzero(gone[:, j])
            lower = cho_factor(inverse[np.ix_(dropped, dropped)], lower=True, overwrite_a=True)
            return np.asarray(cho_solve(lower, moments.weights[dropped, j]))

        pulls = np.zeros((n, m))
        for j, pull in enumerate(self._executor.map(solved, range(m))):
            pulls[gone[:, j], j] = pull
        weights = moments.weights - inverse @ pulls
        weights[gone] = 0
        return Fit(weights, None)

    @cached_property
    def _inverse(self) -> Matrix | None:
        """The inverse of what enters' Gram, with the package's ridge; None where it would not be accurate."""
        gram = self._entering[1].moments.gram
        ridged = gram + RIDGE["linear"] * np.trace(gram) / len(gram) * np.eye(len(gram))
        try:
            inverse: Matrix = np.asarray(cho_solve(cho_factor(ridged), np.eye(len(gram))))
        except np.linalg.LinAlgError:
            return None
        accurate = np.linalg.norm(ridged, 1) * np.linalg.norm(inverse, 1) < CONDITION
        return (inverse + inverse.T) / 2 if accurate else None

    @cached_property
    def _entering(self) -> tuple[Reading, Inputs]:
        """What enters the layer."""
        n = self.edges.n // self.edges.block
        return self._observed(
            readings(self._graph, [(self.edges, np.arange(n))], lambda part: np.arange(part.m), MEMORY)
        )

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
