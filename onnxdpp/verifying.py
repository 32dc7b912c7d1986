"""Proof on the very model: what was found to be neurons is put to two tests, by running it.

*Permuting*: the order of a layer's neurons is nobody's business, so that permuting them leaves all outputs as they are.
*Cutting*: dropping a random half gives what the whole model gives when its consumers' entries for that half are zero.
A running sum over the neurons passes the second and fails the first; a Softmax over them passes the first and fails
the second. Neurons are permuted among those that are alike.

Both change the order of sums, and so the last bits. Where outputs differ by more than a plain tolerance, they may still
differ by no more than they do when the consumers' weights are off by their last bits: an output behind a Sigmoid that
is all but 0 moves by a percent then.
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
from onnxdpp.graph.rewriting import Edits, apply, current, silenced, sliced

TOLERANCE = {2: 2e-2, 4: 1e-3, 8: 1e-9}
"""By the bytes of an entry: the largest difference that rounding may make, relative to the largest entry."""
DIFFERING = 0.01
"""Share of entries of an output of whole numbers (classes, say) that rounding may change."""
LAST_BITS = 16
"""In units of a weight's last bit, how far weights are moved to see what rounding does."""
ROUNDING = 8
"""How many times what that does is still rounding."""


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
        gaps = np.array([_gaps(before, run(_shuffled(layer, rng)), compared), _gaps(expected, run(half), compared)])
        limits = _limits(before, compared)
        if (gaps > limits).any() and np.isfinite(gaps).all():
            rough = Session(apply(graph, _roughened(graph, layer, rng)), provider, graph.folder).run(batch)
            limits = np.maximum(limits, ROUNDING * np.array(_gaps(before, rough, compared)))
        permuted, cut = (float(part) if np.isfinite(part) else None for part in gaps.max(1, initial=0.0))
        verdicts.append(Verdict(layer.name, permuted, cut, bool((gaps <= limits).all())))
        progress(layer.name, (number + 1) / len(layers))
    return verdicts


def _half(layer: Layer, rng: Generator) -> NDArray[np.intp]:
    """About half of the neurons, sorted; at least one of each section."""
    first = [rng.choice(np.flatnonzero(layer.sections == section)) for section in np.unique(layer.sections)]
    others = rng.permutation(np.setdiff1d(np.arange(layer.n), first))
    return np.sort(np.concatenate([first, others[: max(0, layer.n // 2 - len(first))]]).astype(np.intp))


def _shuffled(layer: Layer, rng: Generator) -> NDArray[np.intp]:
    """The neurons in another order, each in the place of one that is like it."""
    order = np.arange(layer.n)
    for kind in np.unique(layer.alike):
        members = np.flatnonzero(layer.alike == kind)
        order[members] = rng.permutation(members)
    return order


def _roughened(graph: Graph, layer: Layer, rng: Generator) -> Edits:
    """Edits after which the consumers' weights are off by their last bits."""
    edits: Edits = {}
    for _, part in layer.consumers:
        weights = current(graph, {}, part.use)
        step = LAST_BITS * np.finfo(weights.dtype).eps
        edits[part.use] = (weights * (1 + step * rng.uniform(-1, 1, weights.shape))).astype(weights.dtype)
    return edits


def _limits(outputs: Sequence[Array], places: Sequence[int]) -> list[float]:
    return [TOLERANCE[outputs[place].itemsize] if outputs[place].dtype.kind == "f" else DIFFERING for place in places]


def _gaps(before: Sequence[Array], after: Sequence[Array], places: Sequence[int]) -> list[float]:
    """The largest difference in each of these outputs."""
    gaps = []
    for place in places:
        old, new = before[place], after[place]
        if old.shape != new.shape or old.dtype != new.dtype:
            gaps.append(np.inf)
        elif old.dtype.kind == "f":
            gaps.append(_distance(np.asarray(old, np.float64), np.asarray(new, np.float64)))
        else:
            gaps.append(float(np.mean(old != new)) if old.size else 0.0)
    return gaps


def _distance(old: Array, new: Array) -> float:
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return np.inf
    scale = np.abs(old[finite]).max(initial=0.0)
    gap = np.abs(old - new)[finite].max(initial=0.0)
    return float(gap / scale) if scale > 0 else float(gap)
