"""Pruning a model: the one place where the stages meet.

    model -> layers -> plan -> for each layer, in topological order:
        calibration -> Moments -> selection -> refit -> rewriting
    -> verify -> report

X always comes from the model as pruned so far and Y from the original, so that each layer's refit sees, and repairs,
what the earlier ones lost.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeAlias
from zlib import crc32

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdpp.algebra.moments import Accumulator, Moments
from onnxdpp.algebra.refit import Fit, cut, refit_edges, refit_neurons, relative_loss
from onnxdpp.algebra.selection import choose_edges, choose_neurons, edge_beta, neuron_beta
from onnxdpp.errors import DataError, NothingToPrune, UsageError
from onnxdpp.graph.batches import Batches
from onnxdpp.graph.calibration import Block, Observer, cores
from onnxdpp.graph.index import Graph
from onnxdpp.graph.layers import Layer, find_layers
from onnxdpp.graph.projections import Projection, Refusal, find_projections
from onnxdpp.graph.rewriting import Edits, apply, reweighted, sliced, with_biases
from onnxdpp.graph.walking import quoted
from onnxdpp.options import Options
from onnxdpp.report import LayerResult

Progress: TypeAlias = Callable[[str, float], None]

# Accumulators that blocks go to in turn: constants, so that sums do not depend on the machine.
LANES = 4
WIDE = 4096  # inputs from which on there is one accumulator only, since each holds n² numbers


@dataclass(frozen=True)
class Target:
    """One layer (neurons) or projection (edges), and how many of its `n` stay."""

    part: Layer | Projection
    k: int

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.part.name

    @property
    def consumers(self) -> tuple[Projection, ...]:
        """The projections that are refitted."""
        if isinstance(self.part, Projection):
            return (self.part,)
        return tuple(projection for projection, _ in self.part.consumers)


@dataclass(frozen=True)
class Plan:
    """What will be pruned, and what is left alone and why."""

    targets: tuple[Target, ...]
    refusals: tuple[Refusal, ...]


def plan(graph: Graph, options: Options) -> Plan:
    """Decide which layers are pruned, and how many neurons or edges of each stay.

    Parameters
    ----------
    graph : Graph
    options : Options

    Raises
    ------
    UsageError
        If a pattern matches nothing.
    NothingToPrune
        If no layer is left to prune.
    """
    found: Sequence[Layer | Projection]
    found, refused = find_layers(graph) if options.unit == "neuron" else find_projections(graph)
    names = [part.name for part in found] + [refusal.name for refusal in refused]
    for pattern in (*(pattern for pattern, _ in options.layers), *options.skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(repr(part.name) for part in found[:8]) or "none"
            raise UsageError(f"The pattern {pattern!r} matches no layer. Layers that can be pruned: {some}.")
    targets = []
    for part in found:
        keep, reason = _wish(part.name, options)
        if reason is None:
            targets.append(Target(part, options.count(keep, part.n)))
        else:
            refused.append(Refusal(part.name, reason))
    if not targets:
        reasons = [(refusal.name, refusal.reason) for refusal in refused]
        why = f"no layer of {len(reasons)} candidates" if reasons else "its graph has no Gemm, MatMul or Conv"
        raise NothingToPrune(f"Nothing can be pruned: {why}.", reasons)
    return Plan(tuple(targets), tuple(refused))


def _wish(name: str, options: Options) -> tuple[float | None, str | None]:
    """The keep that the options give the layer `name` alone, if any; or the reason why it is left as it is."""
    for pattern in options.skip:
        if fnmatchcase(name, pattern):
            return None, f"protected by --skip {pattern}"
    matches = [keep for pattern, keep in options.layers if fnmatchcase(name, pattern)]
    if options.layers and not matches:
        return None, "no --layer pattern names it"
    return (matches[-1] if matches else None), None


def execute(
    graph: Graph, todo: Plan, options: Options, batches: Batches, provider: str, progress: Progress
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

    Returns
    -------
    ModelProto, list of LayerResult, list of int
        The pruned model, what was done to each layer, and how many observations each was fitted on.
    """
    base = graph
    if options.refit == "affine":
        base = Graph(with_biases(graph, [part for target in todo.targets for part in target.consumers]))
        todo = plan(base, options)
    edits: Edits = {}
    changed: frozenset[str] = frozenset()
    results, observations = [], []
    with threadpool_limits(1), ThreadPoolExecutor(cores()) as executor:
        for target in todo.targets:
            started = time.perf_counter()
            now = Graph(apply(base, edits, changed))
            moments = _observe(base, now, target, batches, provider, executor, partial(progress, target.name))
            seed = SeedSequence(options.seed, spawn_key=(crc32(target.name.encode()),))
            solve = _prune_neurons if isinstance(target.part, Layer) else _prune_edges
            try:
                solved = solve(target, moments, options, seed, executor)
            except (ValueError, IndexError, np.linalg.LinAlgError) as error:
                raise DataError(
                    f"Layer {quoted(target.name)} cannot be pruned in float64: {error} "
                    f"Its inputs have {_scale(moments.values())}. Scale the model, change beta or epsilon, or skip it."
                ) from error
            edits = _write(base, edits, target, solved)
            if isinstance(target.part, Layer) and target.k < target.part.n:
                changed |= target.part.changed
            observations.append(min(part.count for part in moments.values()))
            results.append(replace(solved.result, seconds=time.perf_counter() - started))
    return apply(base, edits, changed), results, observations


def _observe(
    base: Graph,
    now: Graph,
    target: Target,
    batches: Batches,
    provider: str,
    executor: Executor,
    progress: Callable[[float], None],
) -> dict[str, Moments]:
    """Moments at every value that the consumers of `target` read, their weights side by side."""
    weights: dict[str, NDArray[np.float64]] = {}
    taps: dict[str, int] = {}
    for tap, parts in _by_tap(target).items():
        weights[tap] = np.hstack([original_weights(base, part) for part in parts])
        tensor = base.tensor(base.name_at(parts[0].weight))
        assert tensor is not None
        taps[tap] = tensor.data_type
    observer = Observer(base, now, list(taps.items()), batches, provider)
    count = LANES if max(map(len, weights.values())) < WIDE else 1
    lanes = [{tap: Accumulator(weights[tap], paired=observer.paired) for tap in taps} for _ in range(count)]
    pending: list[Future[None] | None] = [None] * count
    done = 0
    for number, (batch, blocks) in enumerate(observer):
        lane = number % count
        if (before := pending[lane]) is not None:
            before.result()
        pending[lane] = executor.submit(_accumulate, lanes[lane], blocks)
        done += batch.rows
        progress(done / batches.rows)
    for future in pending:
        if future is not None:
            future.result()
    for other in lanes[1:]:
        for tap in taps:
            lanes[0][tap].merge(other[tap])
    if not all(accumulator.count for accumulator in lanes[0].values()):
        raise DataError(f"No observation reaches layer {quoted(target.name)}: its input is empty on these data.")
    moments = {tap: accumulator.moments() for tap, accumulator in lanes[0].items()}
    if not all(part.is_finite for part in moments.values()):
        raise DataError(
            f"The squares of what enters {quoted(target.name)} overflow float64. Scale the model or the data."
        )
    return moments


def _scale(moments: Iterable[Moments]) -> str:
    """The range of the inputs' root mean squares, in words."""
    powers = np.concatenate([np.diagonal(part.gram) for part in moments])
    return f"root mean squares from {np.sqrt(powers.min()):.3g} to {np.sqrt(powers.max()):.3g}"


def _accumulate(lane: Mapping[str, Accumulator], blocks: Mapping[str, Block]) -> None:
    for tap, block in blocks.items():
        lane[tap].update(block.x, block.original)


def _by_tap(target: Target) -> dict[str, list[Projection]]:
    parts: dict[str, list[Projection]] = {}
    for projection in target.consumers:
        parts.setdefault(projection.tap, []).append(projection)
    return parts


def original_weights(graph: Graph, projection: Projection) -> NDArray[np.float64]:
    """W0 of a projection, (n, m) float64."""
    stored = graph.array(graph.name_at(projection.weight))
    assert stored is not None
    return projection.effective(stored)


@dataclass(frozen=True)
class _Solved:
    """What was found for one target: new weights per tap, and which neurons stay."""

    fits: dict[str, Fit]
    keep: NDArray[np.intp] | None
    result: LayerResult


def _prune_neurons(
    target: Target, moments: Mapping[str, Moments], options: Options, seed: SeedSequence, _: Executor
) -> _Solved:
    observed, rule = list(moments.values()), options.rule
    beta = neuron_beta(observed, rule)
    keep = choose_neurons(observed, target.k, rule, beta, seed)
    fits = {tap: refit_neurons(part, keep, options.refit) for tap, part in moments.items()}
    before = relative_loss((part, cut(part, keep)) for part in observed)
    after = relative_loss((part, fits[tap]) for tap, part in moments.items())
    return _Solved(fits, keep, _result(target, options, beta, keep, before, after))


def _prune_edges(
    target: Target, moments: Mapping[str, Moments], options: Options, seed: SeedSequence, executor: Executor
) -> _Solved:
    ((tap, observed),) = moments.items()
    beta = edge_beta(observed, options.rule)
    kept = choose_edges(observed, target.k, options.rule, beta, seed, executor)
    fit = refit_edges(observed, kept, options.refit, executor)
    before = relative_loss([(observed, refit_edges(observed, kept, "none", executor))])
    after = relative_loss([(observed, fit)])
    return _Solved({tap: fit}, None, _result(target, options, beta, None, before, after))


def _result(
    target: Target,
    options: Options,
    beta: float | None,
    keep: NDArray[np.intp] | None,
    before: float | None,
    after: float | None,
) -> LayerResult:
    return LayerResult(
        name=target.name,
        unit=options.unit,
        width=target.part.n,
        kept=target.k,
        keep=None if keep is None else keep.tolist(),
        method=options.method,
        kernel=options.kernel if options.rule.uses_kernel else None,
        beta=beta,
        refit=options.refit,
        loss_before_refit=before,
        loss=after,
        seconds=0.0,
    )


def _write(base: Graph, edits: Edits, target: Target, solved: _Solved) -> Edits:
    """The edits so far and those for `target`."""
    for tap, parts in _by_tap(target).items():
        fit, first = solved.fits[tap], 0
        for projection in parts:
            columns = slice(first, first + projection.m)
            first += projection.m
            intercept = None if fit.intercept is None else fit.intercept[columns]
            edits = reweighted(base, edits, projection, fit.weights[:, columns], intercept)
    if isinstance(target.part, Layer) and solved.keep is not None and target.k < target.part.n:
        edits = sliced(base, edits, target.part.slices, solved.keep)
    return edits
