"""How many neurons of each layer stay, when the user says how small the model shall be, or how good.

A *path* leads from the whole model to the smallest, a few neurons at a time; the goal picks the first point on it that
is small enough (or the last that is good enough), found by bisection with the model's true size there.

- *uniform*: the same fraction of every layer.
- *measured*: whatever costs least for what it saves is next. What a layer costs is its own error curve (backward
  elimination gives the error of the refit for every number kept at once), in units of what it does to the model's
  outputs: measured once, by pruning that layer alone.
- *auto*: both lead to a goal of size, and both prune the model on up to `ROWS` rows; the one whose worst output is
  nearer on rows held out is taken. Curves know one layer each; where many narrow ones follow each other, that may
  mislead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.contest import WIDEST
from onnxdpp.algebra.neurons import Inputs, through
from onnxdpp.algebra.tableau import error_curve
from onnxdpp.edge_bytes import bytes_of_edges
from onnxdpp.errors import DataError, ModelError, UsageError
from onnxdpp.evaluation import Recalled, compare, macs_by_node, parameters
from onnxdpp.graph.batches import HELD_OUT, Batch
from onnxdpp.graph.calibration import cores
from onnxdpp.graph.index import Graph, Use
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.model import model_info
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.rewriting import Edits, apply, current, sliced
from onnxdpp.job import Job
from onnxdpp.judging import Judge
from onnxdpp.observation import observe, original_weights, readings_of
from onnxdpp.options import Options
from onnxdpp.planning import Plan
from onnxdpp.pruning import execute, with_intercepts
from onnxdpp.rivals import ROWS, whole_run

STEPS = 1000
"""How many steps lead from a whole layer to one neuron of it, at most."""
PROBE = 0.05
"""A layer is pruned alone, to see what it does to the outputs, to where its error is this share of the worst."""

Counts = tuple[int, ...]


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


def allocate(job: Job, todo: Plan) -> tuple[Plan, list[str]]:
    """The plan that reaches the goal of the options.

    Parameters
    ----------
    job : Job
        Its options have a goal.
    todo : Plan
        Which layers may be pruned.

    Returns
    -------
    Plan, list of str
        And notices.

    Raises
    ------
    UsageError
        If the goal cannot be reached: with the figure that can.
    """
    options = job.options
    if options.unit == "edge":
        return _edges(job, todo), []
    layers = [target.part for target in todo.targets if isinstance(target.part, Layer)]
    first = next(iter(job.batches))
    # What is to be small is the model as it will be, with the biases that the refit puts in.
    base, whole = with_intercepts(job, todo)
    own = [target.part for target in whole.targets if isinstance(target.part, Layer)]
    paths = {}
    if options.allocation != "uniform":
        macs = None if options.target_macs is None else macs_by_node(base, first, job.provider) or {}
        curves = _curves(job, layers)
        effects = _effects(job, todo, curves)
        paths["measured"] = _measured(own, curves, effects, weighing(own, _weights(base, own, macs)))
    if options.allocation == "uniform" or (options.allocation == "auto" and options.target_discrepancy is None):
        paths["uniform"] = _uniform(layers, options)
    if options.target_discrepancy is not None:
        (path,) = paths.values()
        return _good_enough(job, path, todo), []
    goal, size, unit = _goal(job, first)

    def weight(counts: Counts) -> int:
        return size(_cut(base, own, counts))

    plans = {}
    for name, path in paths.items():
        counts = _light_enough(path, weight, goal, unit)
        if options.allocation != "uniform":
            counts = _filled(counts, layers, lambda more: weight(more) <= goal)
        plans[name] = _planned(todo, counts)
    return _nearest(job, plans)


def _nearest(job: Job, plans: Mapping[str, Plan]) -> tuple[Plan, list[str]]:
    """The plan that leaves the outputs nearest, on rows held out, and what is told of it; the first of equals."""
    name, *others = plans
    if all(plans[other] == plans[name] for other in others) or job.batches.rows < HELD_OUT:
        return plans[name], []
    few = replace(job, batches=job.batches.thinned(ROWS))
    judge = Judge(job.graph, few.batches, job.provider, job.options.mask)
    distances = {}
    for number, (each, todo) in enumerate(plans.items()):
        job.progress("allocations", number / len(plans))
        try:
            found = whole_run(few, todo, judge)
        except (ModelError, DataError):  # it may be well on all rows, and then that run says why it is not
            found = None
        distances[each] = math.inf if found is None else found.discrepancy
    job.progress("allocations", 1.0)
    best = min(plans, key=distances.__getitem__)
    if not math.isfinite(distances[best]):
        return plans[best], []
    told = ", ".join(f"{distance:.4g} {each}" for each, distance in distances.items())
    return plans[best], [f"The {best} allocation was taken: discrepancy on rows held out {told}."]


def _edges(job: Job, todo: Plan) -> Plan:
    """The same fraction of the edges into every output: as many as the file may hold, or as are needed."""
    parts = [target.part for target in todo.targets if isinstance(target.part, Projection)]
    path = _uniform(parts, job.options)
    if job.options.target_discrepancy is not None:
        return _good_enough(job, path, todo)
    if job.options.target_bytes is not None:
        return _planned(todo, _light_enough(path, bytes_of_edges(job, todo), job.options.target_bytes, "bytes"))
    goal = float(job.options.target_parameters or 0.0) * parameters(job.graph.model, job.graph.folder)[1]
    return _planned(todo, _light_enough(path, weight_of_edges(job, todo), goal, "parameters"))


def weight_of_edges(job: Job, todo: Plan) -> Callable[[Counts], int]:
    """How many parameters may be other than zero, once each output of a projection keeps so many of its edges."""
    base, todo = with_intercepts(job, todo)
    parts = [target.part for target in todo.targets if isinstance(target.part, Projection)]
    carrying = [np.count_nonzero(original_weights(base, part), axis=0) for part in parts]
    uses = {part.bias.use for part in parts if part.bias is not None and job.options.refit == "affine"}
    # A refit may put a number wherever a bias has a zero.
    most = parameters(base.model, base.folder)[1] + sum(int((current(base, {}, use) == 0).sum()) for use in uses)
    return lambda counts: (
        most - sum(int(np.maximum(edges - k, 0).sum()) for k, edges in zip(counts, carrying, strict=True))
    )


def _planned(todo: Plan, counts: Counts) -> Plan:
    targets = zip(todo.targets, counts, strict=True)
    return replace(todo, targets=tuple(replace(target, k=k) for target, k in targets))


def _light_enough(path: Sequence[Counts], weight: Callable[[Counts], int], goal: float, unit: str) -> Counts:
    """The first counts on the path that weigh no more than the goal."""
    place = _bisect(len(path), lambda index: weight(path[index]) <= goal)
    if place is None:
        least = weight(path[-1])
        raise UsageError(
            f"The smallest model that can be reached has {least:,} {unit}, and the goal is {goal:,.0f}. Raise it."
        )
    return path[place]


def _filled(counts: Counts, layers: Sequence[Layer], fits: Callable[[Counts], bool]) -> Counts:
    """`counts`, with what still fits: a step at a time, layer by layer."""
    for number, layer in enumerate(layers):
        step = max(1, layer.n // STEPS)
        while True:
            more = (*counts[:number], min(layer.n, counts[number] + step), *counts[number + 1 :])
            if more == counts or not fits(more):
                break
            counts = more
    return counts


def _goal(job: Job, batch: Batch) -> tuple[float, Callable[[ModelProto], int], str]:
    """What is to be reached, how it is measured, and what it is called."""
    graph, options = job.graph, job.options
    if options.target_bytes is not None:
        return float(options.target_bytes), lambda model: model_info(model, graph.folder).bytes, "bytes"
    if options.target_parameters is not None:
        whole = parameters(graph.model, graph.folder)[0]
        return options.target_parameters * whole, lambda model: parameters(model, graph.folder)[0], "parameters"
    assert options.target_macs is not None

    def macs(model: ModelProto) -> int:
        return sum((macs_by_node(Graph(model, graph.folder), batch, job.provider) or {}).values()) // batch.rows

    return options.target_macs * macs(graph.model), macs, "MACs"


def _bisect(count: int, reached: Callable[[int], bool]) -> int | None:
    """The first index that reaches the goal; None if none does."""
    low, high = 0, count - 1
    if not reached(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _good_enough(job: Job, path: Sequence[Counts], todo: Plan) -> Plan:
    """The smallest model on the path whose worst output is near enough on rows that were not fitted."""
    goal, judged = float(job.options.target_discrepancy or 0.0), job.judged
    assert judged is not None  # as with all jobs that have this goal
    original = Recalled(job.graph.model, job.provider, job.graph.folder)

    def too_far(index: int) -> bool:
        model, _, _ = execute(job, _planned(todo, path[index]))
        worst = compare(job.graph, model, judged, job.provider, mask=job.options.mask, before=original).worst
        if math.isnan(worst):
            raise UsageError("target_discrepancy finds no output to compare. Give a keep instead.")
        return worst > goal

    # Coarsely, so that the whole takes a handful of runs.
    grid = sorted({round(place) for place in np.linspace(0, len(path) - 1, 65)})
    place = _bisect(len(grid), lambda index: too_far(grid[index]))
    best = grid[-1] if place is None else grid[place - 1] if place else None
    if best is None:
        raise UsageError(
            f"Even the whole model, refitted, is further than {goal} from the original on the "
            "rows held out. Give more rows, or ask for less."
        )
    return _planned(todo, path[best])


def _cut(graph: Graph, layers: Sequence[Layer], counts: Sequence[int]) -> ModelProto:
    """The model with so many neurons of each layer, whichever: for its size."""
    edits: Edits = {}
    changed: frozenset[str] = frozenset()
    for layer, k in zip(layers, counts, strict=True):
        if k < layer.n:
            first = [int(np.flatnonzero(layer.sections == section)[0]) for section in np.unique(layer.sections)]
            others = np.setdiff1d(np.arange(layer.n), first)[: max(0, k - len(first))]
            edits = sliced(graph, edits, layer, np.sort(np.concatenate([first, others]).astype(np.intp)))
            changed |= layer.changed
    return apply(graph, edits, changed)


def _weights(graph: Graph, layers: Sequence[Layer], macs: Mapping[int, int] | None) -> dict[Use, float]:
    """What each constant that is sliced counts for: its entries, or the multiplications with it."""
    uses = {part.use for layer in layers for part in layer.slices}
    if macs is None:
        return {use: float(current(graph, {}, use).size) for use in sorted(uses)}
    readers = {projection.weight: projection.node for layer in layers for projection, _ in layer.consumers}
    readers |= {use: use.node for use in uses if use.slot == 1 and use.node in macs and use not in readers}
    return {use: float(macs[node]) for use, node in sorted(readers.items()) if use in uses and node in macs}


def _uniform(parts: Sequence[Layer | Projection], options: Options) -> list[Counts]:
    """The same fraction of every layer, in steps of a thousandth."""
    least = [part.least if isinstance(part, Layer) else 1 for part in parts]
    path: list[Counts] = []
    for keep in np.linspace(1, 0, 1001):
        wish = [options.count(max(float(keep), 1e-9), part.n) for part in parts]
        counts = tuple(max(pair) for pair in zip(least, wish, strict=True))
        if not path or counts != path[-1]:
            path.append(counts)
    return path


def _measured(
    layers: Sequence[Layer],
    curves: Sequence[NDArray[np.float64]],
    effects: Sequence[float],
    weigh: Weighing,
) -> list[Counts]:
    """Step by step, whatever harms the outputs least for what it saves."""
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
