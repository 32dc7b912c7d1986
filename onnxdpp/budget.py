"""How many neurons of each layer stay, when the user says how small the model shall be, or how good.

A *path* leads from the whole model to the smallest, a few neurons at a time; the goal picks the first point on it that
is small enough (or the last that is good enough), found by bisection with the model's true size there.

Of the two paths (`onnxdpp.paths`), ``allocation="auto"`` takes both to a goal of size, and both prune the model on up
to `ROWS` rows; the one whose worst output is nearer on rows held out is taken. The measured path knows the error curve
of each layer by itself; where many narrow ones follow each other, that may mislead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from onnxdpp.edge_bytes import bytes_of_edges
from onnxdpp.errors import DataError, ModelError, UsageError
from onnxdpp.evaluation import Recalled, compare, macs_by_node, parameters
from onnxdpp.forms import answering_form
from onnxdpp.graph.batches import HELD_OUT, Batch
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.model import model_info
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.rewriting import current
from onnxdpp.job import Job
from onnxdpp.judging import Judge
from onnxdpp.observation import original_weights
from onnxdpp.paths import STEPS, Counts, measured, uniform
from onnxdpp.planning import Plan
from onnxdpp.pruning import execute, with_intercepts
from onnxdpp.rivals import ROWS, whole_run
from onnxdpp.weighing import cut, weighing, weights


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
        paths["measured"] = measured(job, todo, weighing(own, weights(base, own, macs)))
    if options.allocation == "uniform" or (options.allocation == "auto" and options.target_discrepancy is None):
        paths["uniform"] = uniform(layers, options)
    if options.target_discrepancy is not None:
        (path,) = paths.values()
        return _good_enough(job, path, todo), []
    goal, size, unit = _goal(job, first)

    def weight(counts: Counts) -> int:
        return size(cut(base, own, counts))

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
    path = uniform(parts, job.options)
    if job.options.target_discrepancy is not None:
        return _good_enough(job, path, todo)
    if job.options.target_bytes is not None:
        return _planned(todo, _light_enough(path, bytes_of_edges(job, todo), job.options.target_bytes, "bytes"))
    goal = float(job.options.target_parameters or 0.0) * parameters(job.graph.model, job.graph.folder)[1]
    return _planned(todo, _light_enough(path, _weight_of_edges(job, todo), goal, "parameters"))


def _weight_of_edges(job: Job, todo: Plan) -> Callable[[Counts], int]:
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
        try:
            model, _, _ = execute(job, _planned(todo, path[index]))
        except (ModelError, DataError):  # so few cannot be fitted
            return True
        form = answering_form(model, job.graph.folder, job.options.storage, job.options.values)
        worst = compare(job.graph, form.dense, judged, job.provider, mask=job.options.mask, before=original).worst
        if math.isnan(worst):
            raise UsageError("target_discrepancy finds no output to compare. Give a keep instead.")
        return worst > goal

    place = _bisect(len(path), too_far)
    if place == 0:
        raise UsageError(
            f"Even the whole model, refitted, is further than {goal} from the original on the "
            "rows held out. Give more rows, or ask for less."
        )
    return _planned(todo, path[-1 if place is None else place - 1])
