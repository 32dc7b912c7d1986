"""Pruning a model: the one place where the stages meet.

    model -> layers -> plan -> for each layer, in topological order:
        observation -> Moments -> selection -> refit -> rewriting
    -> refit once more what lies behind a later change -> verify -> report

X always comes from the model as pruned so far and Y from the original, so that each layer's refit sees, and repairs,
what the earlier ones lost. In a chain that is all. Where a layer has consumers at several depths (a residual stream),
those behind see less than what is lost in the end: they are refitted once more, in topological order.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeAlias
from zlib import crc32

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.moments import Matrix
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import Fit, refit_neurons
from onnxdpp.errors import DataError, ModelError
from onnxdpp.graph.biases import with_biases
from onnxdpp.graph.calibration import cores
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.rewriting import Edits, apply, reweighted, sliced, sliced_constant
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.walking import quoted
from onnxdpp.job import Job
from onnxdpp.judging import Judge, Judgement
from onnxdpp.observation import Reading, observe, original_weights, readings, readings_of, side_by_side
from onnxdpp.planning import Plan, Target, plan
from onnxdpp.report import LayerResult
from onnxdpp.solving import Solution, Solver

Watch: TypeAlias = Callable[[Target, Solution], None]
Indices: TypeAlias = NDArray[np.intp]


def execute(
    job: Job, todo: Plan, *, scratch: Scratch | None = None, hold_out: bool = False, watch: Watch | None = None
) -> tuple[ModelProto, list[LayerResult], list[int]]:
    """Carry out a plan.

    Parameters
    ----------
    job : Job
    todo : Plan
    scratch : Scratch, optional
        Where pruned weights are put instead of into memory; it must outlive the result.
    hold_out : bool
        Of a trial run: whether every fifth row stays out of the fit to the end, so that it can be judged on them.
    watch : callable (target, solution), optional
        Told what becomes of each layer.

    Returns
    -------
    ModelProto, list of LayerResult, list of int
        The pruned model, what was done to each layer, and onto how many inputs its consumers were refitted at most.
    """
    base, todo = with_intercepts(job, todo)
    with threadpool_limits(1), ThreadPoolExecutor(cores()) as executor:
        run = _Run(job, base, executor, scratch or Scratch(active=False), hold_out, watch)
        run.decide(todo.targets)
        outcomes = [run.prune(target) for target in todo.targets]
        if job.options.refit != "none" and job.options.unit == "neuron":
            run.refit_behind()
    return apply(base, run.edits, run.changed), [result for result, _ in outcomes], [left for _, left in outcomes]


def with_intercepts(job: Job, todo: Plan) -> tuple[Graph, Plan]:
    """The model with a bias wherever the refit wants to put an intercept, and the plan for that model."""
    if job.options.refit != "affine":
        return job.graph, todo
    consumers = {part.node: part for target in todo.targets for part in target.consumers}
    base = Graph(with_biases(job.graph, consumers.values()), job.graph.folder)
    wanted = {target.name: target for target in todo.targets}
    again = [target for target in plan(base, job.options).targets if target.name in wanted]
    return base, replace(todo, targets=tuple(replace(wanted[target.name], part=target.part) for target in again))


class _Run:
    """A plan being carried out.

    Attributes
    ----------
    edits : Edits
        The model as pruned so far, against `base`.
    changed : set of str
        Values whose shape differs.
    """

    def __init__(
        self, job: Job, base: Graph, executor: Executor, scratch: Scratch, hold_out: bool, watch: Watch | None
    ) -> None:
        self.base = base
        self.options = job.options
        self.edits: Edits = {}
        self.changed: frozenset[str] = frozenset()
        self._job = job
        self._executor = executor
        self._scratch = scratch
        self._judge = Judge(base, job.batches, job.provider, job.options.mask)
        self._solver = Solver(job.options, executor, hold_out)
        self._hold_out = hold_out
        self._watch = watch
        self._decided: list[tuple[Layer, Indices]] = []  # layers of which is known what will stay
        self._cut: list[tuple[Layer, Indices]] = []  # layers of which neurons are gone, and those that stay
        self._turn = 0
        self._fitted: dict[int, tuple[int, list[Reading]]] = {}  # node -> when it was refitted last, and on what

    def decide(self, targets: Sequence[Target]) -> None:
        """What will be gone needs not be fitted, nor chosen for."""
        for target in targets:
            if target.keep is not None and isinstance(target.part, Layer):
                self._decided.append((target.part, np.array(target.keep, np.intp)))

    def prune(self, target: Target) -> tuple[LayerResult, int]:
        """Choose, refit and rewrite one layer; its result and the number of inputs that are left to a consumer."""
        started = time.perf_counter()
        part, options = target.part, self.options
        layer = part if isinstance(part, Layer) else None
        if isinstance(part, Layer):
            wanted = readings_of(self.base, part, options.memory, self._alive)
        else:
            wanted = readings(self.base, [(part, np.arange(part.n // part.block))], self._alive, options.memory)
        less = target.own_size or target.k < part.n
        contest = less and options.method == "auto" and options.refit != "none" and options.apply is None
        felt = less and layer is not None and options.sensitivity
        roots = self._job.sensitivity.roots(wanted, target.name) if felt else None
        split = contest or self._hold_out
        observed, held = self._observe(wanted, target.name, split=split, between=roots is not None)
        seed = SeedSequence(self.options.seed, spawn_key=(crc32(target.name.encode()),))
        try:
            if target.own_size and layer is not None:
                target = replace(target, k=self._solver.own_size(layer, observed))
            if held is not None and contest and target.k < part.n:
                judge = partial(self._judgement, target, wanted)
                solution = self._solver.by_contest(target, observed, held, roots, seed, judge)
            else:
                solution = self._solver.by_method(target, observed, roots, seed)
        except (ValueError, IndexError) as error:  # of linear algebra too
            raise DataError(
                f"Layer {quoted(target.name)} cannot be pruned in float64: {error} "
                f"Its inputs have {_scale(observed)}. Scale the model, change beta or epsilon, or skip it."
            ) from error
        edits, self.changed, self._cut = self._with(target, wanted, solution)
        self.edits = self._scratch.spilled(edits)
        self._remember(wanted)
        count = min(inputs.moments.count for inputs in solution.observed)
        keep = solution.keep
        left = target.k if keep is None else max(len(inputs.kept(keep)) for inputs in observed)
        observed_as = "inputs" if all(reading.places is None for reading in wanted) else "channels"
        seconds = time.perf_counter() - started
        if self._watch is not None:
            self._watch(target, solution)
        return replace(solution.result, observed=observed_as, observations=count, seconds=seconds), left

    def refit_behind(self) -> None:
        """Refit once more, in topological order, whatever lies behind something that was refitted no earlier."""
        above = {node: self.base.upstream(bundle[0].tap.value) for node, (_, bundle) in self._fitted.items()}
        for node in sorted(self._fitted):
            turn, bundle = self._fitted[node]
            late = any(other in above[node] and self._fitted[other][0] >= turn for other in self._fitted)
            if not late or any(reading.places is not None for reading in bundle):
                continue
            again = [
                replace(reading, left=self._left(reading), weights=side_by_side(self.base, reading.parts))
                for reading in bundle
            ]
            fits = []
            seen, _ = self._observe(again, bundle[0].parts[0][0].name, split=self._hold_out)
            for reading, inputs in zip(again, seen, strict=True):
                fit = refit_neurons(inputs.moments, np.arange(len(inputs.neurons)), self.options.refit)
                weights = np.zeros_like(reading.weights)
                weights[reading.left] = fit.weights
                fits.append(Fit(weights, fit.intercept))
            self.edits = self._scratch.spilled({**self.edits, **self._reweighted(again, fits, self._cut)})
            self._remember(again)

    def _observe(
        self, wanted: Sequence[Reading], name: str, *, split: bool = False, between: bool = False
    ) -> tuple[list[Inputs], list[Inputs] | None]:
        now = Graph(apply(self.base, self.edits, self.changed), self.base.folder)
        return observe(
            self.base, now, wanted, self._job.batches, self._job.provider, self.options, self._executor,
            partial(self._job.progress, name), name, split=split, between=between,
        )  # fmt: skip

    def _alive(self, projection: Projection) -> Indices:
        """The outputs of a projection that are not gone, and will not be."""
        alive = np.ones(projection.m, bool)
        for layer, keep in (*self._cut, *self._decided):
            for part in layer.producers:
                if part.use == projection.weight and part.axis == projection.output_axis:
                    labels = np.tile(part.labels, projection.m // len(part.labels))
                    alive &= np.isin(labels, keep) | (labels < 0)
        return np.flatnonzero(alive)

    def _left(self, reading: Reading) -> Indices:
        """The inputs of a reading that are not gone."""
        node = reading.parts[0][0].node
        for layer, keep in self._cut:
            if any(part.node == node for part, _ in layer.consumers):
                return np.flatnonzero(np.isin(reading.neurons, keep) | (reading.neurons < 0))
        return np.arange(len(reading.neurons))

    def _judgement(self, target: Target, wanted: Sequence[Reading], solution: Solution) -> Judgement | None:
        """How far the model would be from the original with such a solution, and what follows as it was."""
        try:
            edits, changed = self._with(target, wanted, solution)[:2]
        except ModelError:  # these weights do not fit into their type; those of another may
            return Judgement(np.inf, None)
        return self._judge.judge(apply(self.base, edits, changed))

    def _with(
        self, target: Target, wanted: Sequence[Reading], solution: Solution
    ) -> tuple[Edits, frozenset[str], list[tuple[Layer, Indices]]]:
        """The edits so far and those of a solution, which values change shape, and what is cut."""
        edits, changed, gone = self.edits, self.changed, self._cut
        part = target.part
        if isinstance(part, Layer) and solution.keep is not None and len(solution.keep) < part.n:
            edits = sliced(self.base, edits, part, solution.keep)
            changed |= part.changed
            gone = [*gone, (part, solution.keep)]
        return {**edits, **self._reweighted(wanted, solution.fits, gone)}, changed, gone

    def _remember(self, wanted: Sequence[Reading]) -> None:
        """When the projections of some readings were refitted last, and on what."""
        if not self._refits:
            return
        self._turn += 1
        bundles: dict[int, list[Reading]] = {}
        for reading in wanted:
            for projection, _ in reading.parts:
                # Without their weights, which would pile up in memory.
                bundles.setdefault(projection.node, []).append(replace(reading, weights=np.empty((0, 0))))
        self._fitted.update({node: (self._turn, bundle) for node, bundle in bundles.items()})

    def _reweighted(
        self, wanted: Sequence[Reading], fits: Sequence[Fit], gone: Sequence[tuple[Layer, Indices]]
    ) -> Edits:
        """The edits that write fits."""
        if not self._refits:
            return {}
        whole: dict[int, tuple[Projection, Matrix, Matrix | None]] = {}
        for reading, fit in zip(wanted, fits, strict=True):
            for projection, outputs, weights, intercept in reading.fitted(self.base, fit):
                matrix = original_weights(self.base, projection)
                bias = None if intercept is None else np.zeros(projection.m)
                _, matrix, bias = whole.setdefault(projection.node, (projection, matrix, bias))
                matrix[:, outputs] = weights
                if bias is not None and intercept is not None:
                    bias[outputs] = intercept
        return {
            use: sliced_constant(use, array, gone)
            for projection, matrix, bias in whole.values()
            for use, array in reweighted(self.base, projection, matrix, bias).items()
        }

    @property
    def _refits(self) -> bool:
        """Whether weights are written at all: of neurons that are only cut, none are."""
        return self.options.refit != "none" or self.options.unit == "edge"


def _scale(observed: Iterable[Inputs]) -> str:
    """The range of the inputs' root mean squares, in words."""
    powers = np.concatenate([np.diagonal(part.moments.gram) for part in observed])
    return f"root mean squares from {np.sqrt(powers.min()):.3g} to {np.sqrt(powers.max()):.3g}"
