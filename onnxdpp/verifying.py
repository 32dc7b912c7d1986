"""Proof on the very model: what was found to be neurons is put to two tests, by running it.

*Permuting*: the order of a layer's neurons is nobody's business, so that permuting them leaves all outputs as they are.
*Cutting*: dropping a random half gives what the whole model gives when its consumers' entries for that half are zero.
A running sum over the neurons passes the second and fails the first; a Softmax over them passes the first and fails
the second. Neurons are permuted among those that are alike (of one section).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from onnxdpp.graph.batches import Batch
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.rewriting import apply, silenced, sliced

TOLERANCE = {2: 2e-2, 4: 1e-3, 8: 1e-9}
"""By the bytes of an entry: the largest difference that rounding may make, relative to the largest entry."""
DIFFERING = 0.01
"""Share of entries of an output of whole numbers (classes, say) that rounding may change."""


@dataclass(frozen=True)
class Verdict:
    """What the two tests found for a layer.

    Attributes
    ----------
    name : str
    permuted, cut : float or None
        The largest difference in any output, relative to the largest entry there; for outputs that are no floats, the
        share of entries that differ; None where shapes differ, or what is finite.
    passed : bool
    """

    name: str
    permuted: float | None
    cut: float | None
    passed: bool


def verify(
    graph: Graph,
    layers: Sequence[Layer],
    batch: Batch,
    provider: str,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> list[Verdict]:
    """Put every layer to both tests.

    Parameters
    ----------
    graph : Graph
    layers : sequence of Layer
    batch : Batch
        What to run.
    provider : {"cpu", "cuda"}
    seed : int
        Of permutations and halves.
    progress : callable (text, fraction)
    """
    original = Session(graph.model, provider, graph.folder)
    before = original.run(batch)
    compared = [
        place
        for place, (name, kind, _) in enumerate(original.outputs)
        if kind.startswith("tensor(") and name not in graph.random_values
    ]
    verdicts = []
    for number, layer in enumerate(layers):
        rng = default_rng([seed, number])

        def run(keep: NDArray[np.intp], layer: Layer = layer) -> list[Array]:
            model = apply(graph, sliced(graph, {}, layer, keep), layer.changed)
            return Session(model, provider, graph.folder).run(batch)

        half = _half(layer, rng)
        quiet = apply(graph, silenced(graph, layer, half))
        expected = Session(quiet, provider, graph.folder).run(batch)
        permuted = _gap(before, run(_shuffled(layer, rng)), compared)
        cut = _gap(expected, run(half), compared)
        verdicts.append(Verdict(layer.name, permuted[0], cut[0], permuted[1] and cut[1]))
        progress(layer.name, (number + 1) / len(layers))
    return verdicts


def _half(layer: Layer, rng: Generator) -> NDArray[np.intp]:
    """About half of the neurons, sorted; at least one of each section."""
    first = [rng.choice(np.flatnonzero(layer.sections == section)) for section in np.unique(layer.sections)]
    others = rng.permutation(np.setdiff1d(np.arange(layer.n), first))
    return np.sort(np.concatenate([first, others[: max(0, layer.n // 2 - len(first))]]).astype(np.intp))


def _shuffled(layer: Layer, rng: Generator) -> NDArray[np.intp]:
    """The neurons in another order, each in the place of one of its section."""
    order = np.arange(layer.n)
    for section in np.unique(layer.sections):
        members = np.flatnonzero(layer.sections == section)
        order[members] = rng.permutation(members)
    return order


def _gap(before: Sequence[Array], after: Sequence[Array], places: Sequence[int]) -> tuple[float | None, bool]:
    """The largest difference in any of these outputs, and whether all are no more than rounding."""
    worst, passed = 0.0, True
    for place in places:
        old, new = before[place], after[place]
        if old.shape != new.shape or old.dtype != new.dtype:
            return None, False
        if old.dtype.kind == "f":
            gap, limit = _distance(np.asarray(old, np.float64), np.asarray(new, np.float64)), TOLERANCE[old.itemsize]
        else:
            gap, limit = float(np.mean(old != new)) if old.size else 0.0, DIFFERING
        worst, passed = max(worst, gap), passed and gap <= limit
    return (worst if np.isfinite(worst) else None), passed


def _distance(old: Array, new: Array) -> float:
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return np.inf
    scale = np.abs(old[finite]).max(initial=0.0)
    gap = np.abs(old - new)[finite].max(initial=0.0)
    return float(gap / scale) if scale > 0 else float(gap)
