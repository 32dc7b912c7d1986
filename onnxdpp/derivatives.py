"""How a pruned model's outputs feel the outputs of one of its projections, row by row, and what they lack.

By forward runs alone, so that any graph will do: each output of the projection is moved by a small part of its
deviation, and the part of the model behind is run. It works where each row of data is one row of the projection and of
the outputs; several positions for a row (pixels, tokens) would have to be moved one by one.

What the outputs lack is told in two ways, each scaled to count the same: the change that is missing, relative to
the output's own size; and, of an output that may be scores of classes, what the Kullback-Leibler divergence of its
softmax feels. With p and q the softmax before and now, and ``a = (p + q) / 2``, that is ``g = p - q`` with the metric
``diag(a) - a aᵀ = Rᵀ R``, ``R = diag(√a) (I - 1 aᵀ)``; in least squares, errors ``g / √a`` and changes ``R dz``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from onnxdpp.algebra.moments import Matrix
from onnxdpp.graph.batches import HELD_OUT, Batch, Batches, rows_held_out
from onnxdpp.graph.behind import Behind
from onnxdpp.graph.calibration import Session, part_before
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.samples import picked, spread, stacked
from onnxdpp.judging import is_distribution

ROWS = 16384
BATCH = 256
LEAST_ROWS = 32
MOST_RUNS = 2**20  # rows that the part behind is run on for the derivatives of one projection
MOST_BYTES = 2**29  # of the derivatives, and of what enters a projection
ENTRIES = 64  # of the outputs of a row: of more, sums with random signs stand for them
STEP = 0.02  # of an output's standard deviation
TINY = 1e-9  # probability that no class goes below
LEAST_STEP = 256  # of what rounding changes, in the type of the output
NO_DIVERGENCE = 1e-12  # nats for a row: rounding

Derivatives = tuple[Matrix, Matrix, Matrix]


def derivatives(
    original: Graph, graph: Graph, projection: Projection, batches: Batches, provider: str
) -> Derivatives | None:
    """What enters a projection, what the outputs lack, and how they feel the projection's outputs.

    Parameters
    ----------
    original, graph : Graph
        The original, and the pruned model as it is.
    projection : Projection
        Of `graph`.
    batches : Batches
        Rows held out are left out.
    provider : {"cpu", "cuda"}

    Returns
    -------
    (r, n), (r, s) and (r, s, m) float64 arrays, or None
        None where rows of the data are not rows of the projection and of all outputs behind it, where there are fewer
        than `LEAST_ROWS`, or where something is not finite.

    Raises
    ------
    ModelError, DataError
        If the part behind does not run by itself.
    """
    behind = Behind.of(graph, graph.nodes[projection.node].output[0])
    outputs = [name for name in behind.outputs if name not in graph.random_values | graph.counting_values]
    if not outputs or not graph.random_values.isdisjoint((behind.value, *behind.reads)):
        return None
    if projection.tap not in graph.producer and projection.tap not in {entry.name for entry in graph.inputs}:
        return None  # a constant
    lanes = _Lanes(original, graph, projection.tap, behind, outputs, provider, batches.fixed)
    sample = next(_rows(batches, 1))
    first = lanes.seen(sample)
    if first is None:
        return None
    entries = 2 * min(ENTRIES, sum(array[0].size for array in first.wanted))
    most = min(
        ROWS, MOST_RUNS // projection.m, MOST_BYTES // (8 * (entries * projection.m + projection.n) + first.taken)
    )
    found = [lanes.seen(batch) for batch in _rows(batches, most // sample.rows)]
    seen = [part for part in found if part is not None]
    if len(seen) < len(found) or sum(int(part.fit.sum()) for part in seen) < LEAST_ROWS:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found out in the end
        return _differentiated(seen)


def _rows(batches: Batches, count: int) -> Iterator[Batch]:
    """So many rows, or batches of the size that the model fixes, evenly spaced among those that may be fitted."""
    fit = np.arange(batches.rows)
    fit = fit[fit % HELD_OUT != HELD_OUT - 1]
    rows = picked(batches, fit[spread(len(fit), max(1, count))])
    return rows if batches.fixed else stacked(rows, BATCH)  # one after the other: images are large


@dataclass(frozen=True)
class _Seen:
    """One batch: what enters the projection, what it computes, what else is read behind, and the original's outputs."""

    back: Session
    x: Matrix
    y: Array
    fed: Mapping[str, Array]
    wanted: Sequence[Matrix]
    floats: Sequence[int]
    fit: NDArray[np.bool_]

    @property
    def taken(self) -> int:
        """Bytes that a row takes."""
        arrays = (self.x, self.y, *self.fed.values(), *self.wanted)
        return sum(array.nbytes for array in arrays) // len(self.x)

    def outputs(self, y: Array) -> list[Matrix]:
        """Of the model as it is, (r, ...) each, where the projection gives y."""
        name = self.back.inputs[0][0]
        given = self.back.run(Batch({name: y, **self.fed}, 0, len(y)))
        return [given[place].astype(np.float64) for place in self.floats]


class _Lanes:
    """What computes all that is seen of one projection.

    Parameters
    ----------
    original, graph : Graph
        The original, and the model as it is.
    tap : str
        What enters the projection.
    behind : Behind
    outputs : sequence of str
        Those that are looked at.
    provider : {"cpu", "cuda"}
    fixed : bool
        Whether batches are whole ones of the data.
    """

    def __init__(
        self,
        original: Graph,
        graph: Graph,
        tap: str,
        behind: Behind,
        outputs: Sequence[str],
        provider: str,
        fixed: bool,
    ) -> None:
        self._fixed = fixed
        self._graph, self._tap, self._behind, self._outputs, self._provider = graph, tap, behind, outputs, provider
        self._read = tuple(dict.fromkeys((tap, behind.value, *behind.reads)))
        self._computed = [name for name in self._read if name in graph.producer]
        self._front = Session(part_before(graph, [(name, None) for name in self._computed]), provider, graph.folder)
        self._whole = Session(original.model, provider, original.folder)
        self._back: Session | None = None

    def seen(self, batch: Batch) -> _Seen | None:
        """None where rows of the data are not rows of the projection and of the outputs, or not all is finite."""
        found = dict(zip(self._computed, self._front.run(batch), strict=True))
        values = {name: found[name] if name in found else batch.feeds[name] for name in self._read}
        fed = {name: values[name] for name in (self._behind.value, *self._behind.reads)}
        if self._back is None:
            self._back = self._behind.back(self._graph, fed, self._outputs, self._provider)
        y, x = fed.pop(self._behind.value), values[self._tap]
        answers = dict(zip((name for name, *_ in self._whole.outputs), self._whole.run(batch), strict=True))
        wanted = [answers[name] for name in self._outputs]
        floats = [place for place, array in enumerate(wanted) if _is_float(array)]
        given = [wanted[place].astype(np.float64) for place in floats]
        fit = np.ones(batch.rows, bool)
        if batch.rows > 1 and self._fixed:  # a whole batch, with rows in it that are held out
            fit = ~rows_held_out(np.arange(batch.rows), batch.rows, batch)
        seen = _Seen(self._back, x, y, fed, given, floats, fit)
        if not floats or not _is_float(x) or (x.ndim, y.ndim) != (2, 2):
            return None
        arrays = (x, y, *seen.wanted, *fed.values())
        if any(not array.ndim or len(array) != batch.rows for array in arrays):
            return None
        return seen if all(np.isfinite(array).all() for array in (x, y, *seen.wanted)) else None


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _differentiated(seen: Sequence[_Seen]) -> Derivatives | None:
    """Every output of the projection moved by a small part of its deviation, each by itself."""
    outputs = range(len(seen[0].floats))
    powers = [sum(float((part.wanted[place][part.fit] ** 2).sum()) for part in seen) for place in outputs]
    scales = [1 / np.sqrt(power) if power > 0 else 0.0 for power in powers]
    scored = [_may_be_scores([part.wanted[place] for part in seen]) for place in outputs]
    y = np.concatenate([part.y[part.fit] for part in seen]).astype(np.float64)
    deviation = y.std(0)
    widest = float(deviation.max())
    if not any(scales) or not np.isfinite(widest) or widest <= 0:
        return None
    rounding = LEAST_STEP * float(np.finfo(seen[0].y.dtype).eps)
    moves = np.maximum(STEP * np.where(deviation > 0, deviation, widest), rounding * np.sqrt((y**2).mean(0)))
    errors, jacobians, sections = np.empty((len(y), 0)), np.empty((len(y), 0, len(moves))), [0]
    first = 0
    for part in seen:
        now = part.outputs(part.y)
        lacking = _Lacking(part.wanted, now, scales, scored)
        if part is seen[0]:
            sections = [0, *accumulate(told.shape[1] for told in lacking.errors)]
            errors = np.empty((len(y), sections[-1]))
            jacobians = np.empty((len(y), sections[-1], len(moves)))  # once: it may be large
        rows = slice(first, first := first + int(part.fit.sum()))
        errors[rows] = np.concatenate(lacking.errors, axis=1)[part.fit]
        for output, move in enumerate(moves.tolist()):
            moved = part.y.copy()
            moved[:, output] += move
            by = (moved[:, output] - part.y[:, output]).astype(np.float64)[:, None]  # as rounding lets it
            change = [new - old for new, old in zip(part.outputs(moved), now, strict=True)]
            told = np.concatenate(lacking.felt(change), axis=1) / np.where(by == 0, np.inf, by)
            jacobians[rows, :, output] = told[part.fit]
    for number, (start, stop) in enumerate(pairwise(sections)):
        size = float((errors[:, start:stop] ** 2).sum())
        # What is left of a divergence may be rounding alone, which shall not count as much as the change.
        weight = 0.0 if number and size < 2 * NO_DIVERGENCE * len(y) else 1 / (np.sqrt(size) or 1.0)
        errors[:, start:stop] *= weight
        jacobians[:, start:stop] *= weight
    x = np.concatenate([part.x[part.fit] for part in seen]).astype(np.float64)
    return (x, errors, jacobians) if all(np.isfinite(array).all() for array in (x, errors, jacobians)) else None


def _may_be_scores(batches: Sequence[Matrix]) -> bool:
    """Whether an output may be scores of classes: not single numbers, probabilities, nor several positions for a row.

    Of all batches together, since any of them may happen to add up to 1.
    """
    first = batches[0]
    return first.ndim == 2 and first.shape[1] > 1 and not all(map(is_distribution, batches))


class _Lacking:
    """What counts of the outputs of a batch: relative to their size; and of scores of classes, to their softmax.

    Attributes
    ----------
    errors : list of (r, s) float64 arrays
        One for each of these two that there is.
    """

    def __init__(
        self, wanted: Sequence[Matrix], now: Sequence[Matrix], scales: Sequence[float], scored: Sequence[bool]
    ) -> None:
        self._scales = scales
        pairs = zip(wanted, now, scored, strict=True)
        self._means = [_mean(old, new) if scores else None for old, new, scores in pairs]
        lack = [old - new for old, new in zip(wanted, now, strict=True)]
        classes = [
            (softmax(old, axis=1) - softmax(new, axis=1)) / np.sqrt(mean)
            for old, new, mean in zip(wanted, now, self._means, strict=True)
            if mean is not None
        ]
        self.errors = [_flat([scale * part for scale, part in zip(scales, lack, strict=True)])]
        if classes:
            self.errors.append(_flat(classes))

    def felt(self, changes: Sequence[Matrix]) -> list[Matrix]:
        """How changes of the outputs count, as `errors`."""
        found = [_flat([scale * part for scale, part in zip(self._scales, changes, strict=True)])]
        classes = [
            np.sqrt(mean) * (part - (mean * part).sum(1, keepdims=True))
            for part, mean in zip(changes, self._means, strict=True)
            if mean is not None
        ]
        return [*found, _flat(classes)] if classes else found


def _mean(old: Matrix, new: Matrix) -> Matrix:
    """The mean of both softmaxes."""
    mean: Matrix = (softmax(old, axis=1) + softmax(new, axis=1)) / 2
    return np.maximum(mean, TINY)


def _flat(parts: Sequence[Matrix]) -> Matrix:
    """(r, s): all numbers of each row; if they are many, sums of them with random signs."""
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    if flat.shape[1] <= ENTRIES:
        return flat
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=flat.shape[1])
    padded = np.pad(flat * signs, ((0, 0), (0, -flat.shape[1] % ENTRIES)))
    return np.asarray(padded.reshape(len(flat), -1, ENTRIES).sum(1))
