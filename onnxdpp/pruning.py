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

from onnxdpp.algebra.contest import edge_contest, neuron_contest
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import Fit, cut, refit_edges, refit_neurons, relative_loss
from onnxdpp.algebra.selection import choose_edges, choose_neurons, edge_beta, expected_size, neuron_beta
from onnxdpp.errors import DataError
from onnxdpp.graph.batches import Batches
from onnxdpp.graph.biases import with_biases
from onnxdpp.graph.calibration import cores
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.rewriting import Edits, apply, reweighted, sliced, sliced_constant
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.walking import quoted
from onnxdpp.observation import Reading, observe, original_weights, readings, side_by_side
from onnxdpp.options import Options
from onnxdpp.planning import Plan, Target, plan
from onnxdpp.report import LayerResult

Progress: TypeAlias = Callable[[str, float], None]
Indices: TypeAlias = NDArray[np.intp]


def execute(
    graph: Graph,
    todo: Plan,
    options: Options,
    batches: Batches,
    provider: str,
    progress: Progress,
    scratch: Scratch,
) -> tuple[ModelProto, list[LayerResult], list[int]]:
    """Carry out a plan.

    Parameters
    ----------
    graph : Graph
        The original.
    todo : Plan
    options : Options
    batches : Batches
        Calibration data.
    provider : {"cpu", "cuda"}
    progress : callable (text, fraction)
    scratch : Scratch
        Where pruned weights are put instead of into memory; it must outlive the result.

    Returns
    -------
    ModelProto, list of LayerResult, list of int
        The pruned model, what was done to each layer, and onto how many inputs its consumers were refitted at most.
    """
    base = graph
    if options.refit == "affine":
        consumers = {part.node: part for target in todo.targets for part in target.consumers}
        base = Graph(with_biases(graph, consumers.values()), graph.folder)
        wanted = {target.name: target for target in todo.targets}
        again = [target for target in plan(base, options).targets if target.name in wanted]
        targets = [replace(target, k=wanted[target.name].k, keep=wanted[target.name].keep) for target in again]
        todo = replace(todo, targets=tuple(targets))
    with threadpool_limits(1), ThreadPoolExecutor(cores()) as executor:
        run = _Run(base, options, batches, provider, executor, progress, scratch)
        outcomes = [run.prune(target) for target in todo.targets]
        if options.refit != "none" and options.unit == "neuron":
            run.refit_behind()
    return apply(base, run.edits, run.changed), [result for result, _ in outcomes], [left for _, left in outcomes]


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
        self,
        base: Graph,
        options: Options,
        batches: Batches,
        provider: str,
        executor: Executor,
        progress: Progress,
        scratch: Scratch,
    ) -> None:
        self.base = base
        self.options = options
        self.edits: Edits = {}
        self.changed: frozenset[str] = frozenset()
        self._batches = batches
        self._provider = provider
        self._executor = executor
        self._progress = progress
        self._scratch = scratch
        self._cut: list[tuple[Layer, Indices]] = []  # layers of which neurons are gone, and those that stay
        self._turn = 0
        self._fitted: dict[int, tuple[int, list[Reading]]] = {}  # node -> when it was refitted last, and on what

    def prune(self, target: Target) -> tuple[LayerResult, int]:
        """Choose, refit and rewrite one layer; its result and the number of inputs that are left to a consumer."""
        started = time.perf_counter()
        part = target.part
        if isinstance(part, Layer):
            reads = [(projection, slicing.labels) for projection, slicing in part.consumers]
        else:
            reads = [(part, np.arange(part.n // part.block))]
        wanted = readings(self.base, reads, self._alive, self.options.memory)
        own_size = self.options.keep == "auto" and isinstance(part, Layer) and target.k == part.n
        judged = self.options.method == "auto" and self.options.refit != "none"
        auto = judged and (own_size or target.k < part.n) and target.keep is None
        split = auto or self.options.target_discrepancy is not None
        observed, held = self._observe(wanted, target.name, split=split)
        if own_size and isinstance(part, Layer):
            size = round(expected_size(observed, part.n, replace(self.options.rule, method="dpp")))
            target = replace(target, k=min(part.n, max(part.least, size)))
            auto = auto and target.k < part.n
        seed = SeedSequence(self.options.seed, spawn_key=(crc32(target.name.encode()),))
        solve = self._neurons if isinstance(part, Layer) else self._edges
        try:
            fits, keep, result = (
                solve(target, observed, seed)
                if held is None or not auto
                else self._contest(target, observed, held, seed)
            )
        except (ValueError, IndexError, np.linalg.LinAlgError) as error:
            raise DataError(
                f"Layer {quoted(target.name)} cannot be pruned in float64: {error} "
                f"Its inputs have {_scale(observed)}. Scale the model, change beta or epsilon, or skip it."
            ) from error
        if isinstance(part, Layer) and keep is not None and target.k < part.n:
            self.edits = sliced(self.base, self.edits, part, keep)
            self.changed |= part.changed
            self._cut.append((part, keep))
        self._write(wanted, fits)
        self.edits = self._scratch.spilled(self.edits)
        count = min(inputs.moments.count for inputs in observed)
        if auto and held is not None and self.options.target_discrepancy is None:
            count += min(inputs.moments.count for inputs in held)
        left = target.k if keep is None else max(len(inputs.kept(keep)) for inputs in observed)
        observed_as = "inputs" if all(reading.places is None for reading in wanted) else "channels"
        seconds = time.perf_counter() - started
        return replace(result, observed=observed_as, observations=count, seconds=seconds), left

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
            goal = self.options.target_discrepancy is not None
            seen, _ = self._observe(again, bundle[0].parts[0][0].name, split=goal)
            for reading, inputs in zip(again, seen, strict=True):
                fit = refit_neurons(inputs.moments, np.arange(len(inputs.neurons)), self.options.refit)
                weights = np.zeros_like(reading.weights)
                weights[reading.left] = fit.weights
                fits.append(Fit(weights, fit.intercept))
            self._write(again, fits)
            self.edits = self._scratch.spilled(self.edits)

    def _observe(
        self, wanted: Sequence[Reading], name: str, *, split: bool = False
    ) -> tuple[list[Inputs], list[Inputs] | None]:
        now = Graph(apply(self.base, self.edits, self.changed), self.base.folder)
        return observe(
            self.base, now, wanted, self._batches, self._provider, self.options, self._executor,
            partial(self._progress, name), name, split=split,
        )  # fmt: skip

    def _alive(self, projection: Projection) -> Indices:
        """The outputs of a projection that are not gone."""
        alive = np.ones(projection.m, bool)
        for layer, keep in self._cut:
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

    def _neurons(
        self, target: Target, observed: Sequence[Inputs], seed: SeedSequence
    ) -> tuple[list[Fit], Indices | None, LayerResult]:
        layer, options = target.part, self.options
        assert isinstance(layer, Layer)
        beta = neuron_beta(observed, layer.n, options.rule)
        sections = layer.sections if layer.least > 1 else None
        if target.keep is None:
            keep = choose_neurons(observed, layer.n, target.k, options.rule, beta, seed, sections)
        else:
            keep = np.array(target.keep, np.intp)
        kept = [part.kept(keep) for part in observed]
        fits = [refit_neurons(part.moments, inputs, options.refit) for part, inputs in zip(observed, kept, strict=True)]
        before = relative_loss(
            (part.moments, cut(part.moments, inputs)) for part, inputs in zip(observed, kept, strict=True)
        )
        after = relative_loss((part.moments, fit) for part, fit in zip(observed, fits, strict=True))
        return fits, keep, _result(target, options, beta, keep, before, after)

    def _edges(
        self, target: Target, observed: Sequence[Inputs], seed: SeedSequence
    ) -> tuple[list[Fit], Indices | None, LayerResult]:
        options, executor = self.options, self._executor
        seeds = [seed] if len(observed) == 1 else seed.spawn(len(observed))
        fits, bare, betas = [], [], []
        for part, own in zip(observed, seeds, strict=True):
            beta = edge_beta(part.moments, options.rule)
            kept = choose_edges(part.moments, target.k, options.rule, beta, own, executor)
            fits.append(refit_edges(part.moments, kept, options.refit, executor))
            bare.append(refit_edges(part.moments, kept, "none", executor))
            betas.append(beta)
        before = relative_loss((part.moments, fit) for part, fit in zip(observed, bare, strict=True))
        after = relative_loss((part.moments, fit) for part, fit in zip(observed, fits, strict=True))
        return fits, None, _result(target, options, betas[0], None, before, after)

    def _contest(
        self, target: Target, fit: Sequence[Inputs], held: Sequence[Inputs], seed: SeedSequence
    ) -> tuple[list[Fit], Indices | None, LayerResult]:
        """Let all candidates choose and refit on some rows, and take the best on others."""
        part, rule = target.part, self.options.rule
        if isinstance(part, Layer):
            sections = part.sections if part.least > 1 else None
            entries = neuron_contest(fit, held, part.n, target.k, rule, seed, sections)
        else:
            entries = edge_contest(fit, held, target.k, rule, seed, self._executor)
        best = entries[0]
        keep = best.keep if isinstance(best.keep, np.ndarray) else None
        if self.options.target_discrepancy is None:
            # The choice is made: now all rows may say what the weights shall be.
            pairs = zip(fit, held, strict=True)
            fit = [replace(part, moments=part.moments.merged(other.moments)) for part, other in pairs]
        if keep is not None:
            kept = [part.kept(keep) for part in fit]
            bare = [cut(part.moments, inputs) for part, inputs in zip(fit, kept, strict=True)]
            fits = [
                refit_neurons(part.moments, inputs, rule.form, best.strength)
                for part, inputs in zip(fit, kept, strict=True)
            ]
        else:
            edges = list(zip(fit, best.keep, strict=True))
            bare = [refit_edges(part.moments, inputs, "none", self._executor) for part, inputs in edges]
            fits = [
                refit_edges(part.moments, inputs, rule.form, self._executor, best.strength) for part, inputs in edges
            ]
        before = relative_loss((part.moments, found) for part, found in zip(fit, bare, strict=True))
        after = relative_loss((part.moments, found) for part, found in zip(fit, fits, strict=True))
        result = _result(target, self.options, best.beta, keep, before, after)
        contest = [
            {"method": entry.method, "kernel": entry.kernel, "ridge": entry.strength, "loss": entry.loss}
            for entry in entries
        ]
        kernel = best.kernel if best.method == "dpp" else None
        result = replace(result, method=best.method, kernel=kernel, contest=contest, loss_held_out=best.loss)
        return fits, keep, result

    def _write(self, wanted: Sequence[Reading], fits: Sequence[Fit]) -> None:
        """The edits so far and those for a layer."""
        if self.options.refit == "none" and self.options.unit == "neuron":
            return
        self._turn += 1
        bundles: dict[int, list[Reading]] = {}
        whole: dict[int, tuple[Projection, NDArray[np.float64], NDArray[np.float64] | None]] = {}
        for reading, fit in zip(wanted, fits, strict=True):
            for projection, outputs, weights, intercept in reading.fitted(self.base, fit):
                matrix = original_weights(self.base, projection)
                bias = None if intercept is None else np.zeros(projection.m)
                _, matrix, bias = whole.setdefault(projection.node, (projection, matrix, bias))
                matrix[:, outputs] = weights
                if bias is not None and intercept is not None:
                    bias[outputs] = intercept
                # Without their weights, which would pile up in memory.
                bundles.setdefault(projection.node, []).append(replace(reading, weights=np.empty((0, 0))))
        self._fitted.update({node: (self._turn, bundle) for node, bundle in bundles.items()})
        for projection, matrix, bias in whole.values():
            for use, array in reweighted(self.base, projection, matrix, bias).items():
                self.edits[use] = sliced_constant(use, array, self._cut)


def _scale(observed: Iterable[Inputs]) -> str:
    """The range of the inputs' root mean squares, in words."""
    powers = np.concatenate([np.diagonal(part.moments.gram) for part in observed])
    return f"root mean squares from {np.sqrt(powers.min()):.3g} to {np.sqrt(powers.max()):.3g}"


def _result(
    target: Target,
    options: Options,
    beta: float | None,
    keep: Indices | None,
    before: float | None,
    after: float | None,
) -> LayerResult:
    return LayerResult(
        name=target.name,
        members=list(target.part.members) if isinstance(target.part, Layer) else [target.name],
        unit=options.unit,
        width=target.part.n,
        kept=target.k,
        keep=None if keep is None else keep.tolist(),
        method=options.rule.method,
        kernel=options.kernel if options.rule.uses_kernel else None,
        beta=beta,
        refit=options.refit,
        loss_before_refit=before,
        loss=after,
        loss_held_out=None,
        contest=None,
        observed="inputs",
        observations=0,
        seconds=0.0,
    )
