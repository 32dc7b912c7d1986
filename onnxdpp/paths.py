"""Ways from the whole model to the smallest, a few neurons or edges at a time.

- *uniform*: the same fraction of every layer.
- *measured*: whatever costs least for what it saves is next. What a layer costs is its own error curve (that of refits
  onto what backward elimination leaves), in units of what it does to the model's outputs: measured once, by pruning
  that layer alone.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.contest import WIDEST
from onnxdpp.algebra.neurons import Inputs, through
from onnxdpp.algebra.tableau import error_curve
from onnxdpp.evaluation import Recalled, compare
from onnxdpp.graph.calibration import cores
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.projections import Projection
from onnxdpp.job import Job
from onnxdpp.observation import observe, readings_of
from onnxdpp.options import Options
from onnxdpp.planning import Plan
from onnxdpp.pruning import execute
from onnxdpp.weighing import Weighing

STEPS = 1000
"""How many steps lead from a whole layer to one neuron of it, at most."""
PROBE = 0.05
"""A layer is pruned alone, to see what it does to the outputs, to where its error is this share of the worst."""

Counts = tuple[int, ...]


def uniform(parts: Sequence[Layer | Projection], options: Options) -> list[Counts]:
    """The same fraction of every layer, in steps of a thousandth: how many stay of each, from all to the fewest."""
    least = [part.least if isinstance(part, Layer) else 1 for part in parts]
    path: list[Counts] = []
    for keep in np.linspace(1, 0, 1001):
        wish = [options.count(max(float(keep), 1e-9), part.n) for part in parts]
        counts = tuple(max(pair) for pair in zip(least, wish, strict=True))
        if not path or counts != path[-1]:
            path.append(counts)
    return path


def measured(job: Job, todo: Plan, weigh: Weighing) -> list[Counts]:
    """Step by step, whatever harms the outputs least for what it saves: how many stay of each layer, from all on.

    Parameters
    ----------
    job : Job
    todo : Plan
        Of layers of neurons, in the order of those of `weigh`.
    weigh : Weighing
        What is to be saved.
    """
    layers = weigh.layers
    curves = _curves(job, [target.part for target in todo.targets if isinstance(target.part, Layer)])
    effects = _effects(job, todo, curves)
    counts = [layer.n for layer in layers]
    path = [tuple(counts)]
    prices = np.full(len(layers), np.inf)
    stale = set(range(len(layers)))
    while True:
        for number in stale:
            k = _next(layers[number], counts[number])
            saved = weigh.saved(counts, number, k) if k < counts[number] else 0.0
            harm = effects[number] * float(curves[number][k] - curves[number][counts[number]])
            prices[number] = harm / saved if saved > 0 else np.inf
        best = int(prices.argmin())
        if not np.isfinite(prices[best]):
            return path
        counts[best] = _next(layers[best], counts[best])
        path.append(tuple(counts))
        stale = weigh.neighbours(best)


def _next(layer: Layer, count: int) -> int:
    """How many neurons are left after one more step."""
    return max(layer.least, count - max(1, layer.n // STEPS))


def _curves(job: Job, layers: Sequence[Layer]) -> list[NDArray[np.float64]]:
    """For each layer (n + 1,): the error of its refit with the best k of its neurons, the others whole."""
    graph, options = job.graph, job.options
    curves = []
    with threadpool_limits(1), ThreadPoolExecutor(cores()) as executor:
        for layer in layers:
            wanted = readings_of(graph, layer, options.memory)
            roots = job.sensitivity.roots(wanted, layer.name) if options.sensitivity else None
            observed, _ = observe(
                graph, graph, wanted, job.batches, job.provider, options, executor,
                partial(job.progress, f"curve of {layer.name}"), layer.name, between=roots is not None,
            )  # fmt: skip
            curves.append(_curve(through(observed, roots), layer, options))
    return curves


def _curve(observed: Sequence[Inputs], layer: Layer, options: Options) -> NDArray[np.float64]:
    if max(len(part.neurons) for part in observed) > WIDEST:
        # As of independent neurons: what the largest contributions leave out.
        worth = np.zeros(layer.n)
        for part in observed:
            own = part.neurons >= 0
            power = (part.moments.weights**2).sum(1) * part.moments.variance_x
            np.add.at(worth, part.neurons[own], power[own])
        return np.concatenate([[worth.sum()], worth.sum() - np.cumsum(np.sort(worth)[::-1])])
    sections = layer.sections if layer.least > 1 else None
    return error_curve(observed, layer.n, options.rule.form, least=layer.least, sections=sections)


def _effects(job: Job, todo: Plan, curves: Sequence[NDArray[np.float64]]) -> list[float]:
    """What an error of one at a layer's consumers does to the outputs, squared: measured by pruning it alone."""
    effects = []
    original = Recalled(job.graph.model, job.provider, job.graph.folder)
    alone = replace(job, options=replace(job.options, method="dpp", swaps=0))
    for target, curve in zip(todo.targets, curves, strict=True):
        least = target.part.least if isinstance(target.part, Layer) else 1
        harmed = np.flatnonzero(curve[: target.part.n] - curve[-1] >= PROBE * (curve[least] - curve[-1]))
        k = max(least, int(harmed[-1]) if len(harmed) else 0)
        if k >= target.part.n or curve[k] <= curve[-1]:
            effects.append(0.0)
            continue
        plan = replace(todo, targets=(replace(target, k=k),))
        model, _, _ = execute(alone, plan)
        worst = compare(job.graph, model, job.batches, job.provider, mask=job.options.mask, before=original).worst
        effects.append(worst**2 / float(curve[k] - curve[-1]))
    # Where outputs cannot be compared, or are zero in the original, errors count as much as the worst that is known.
    known = max((effect for effect in effects if math.isfinite(effect)), default=0.0) or 1.0
    return [effect if math.isfinite(effect) else known for effect in effects]
