"""How a pruned model's outputs feel the weights of one of its projections, row by row, and what they lack.

By forward runs alone, so that any graph will do: each output of the projection is moved by a small part of its
deviation, and the part of the model behind is run. Where a row of data has several positions (pixels, tokens), each
weight is moved instead (`graph.moving`), if there are no more weights than numbers to fit them to. Runs, their
multiplications and memory are bounded, and with them the rows that are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, starmap

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.gauss_newton import steps
from onnxdpp.algebra.moments import Matrix
from onnxdpp.evaluation import macs_by_node
from onnxdpp.graph.attributes import is_float
from onnxdpp.graph.batches import Batch, Batches, rows_held_out
from onnxdpp.graph.behind import Behind
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.moving import Move, Positions
from onnxdpp.graph.padding import Padding, blanked
from onnxdpp.graph.picks import OtherFour, all_of
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.samples import picked, spread, stacked
from onnxdpp.lacking import ENTRIES, NO_DIVERGENCE, Kind, Lacking, as_scores

ROWS = 16384
BATCH = 256
LEAST_ROWS = 32
MOST_RUNS = 2**20  # rows that the part behind is run on for the derivatives of one projection
MOST_MACS = 2**40  # of these runs: some minutes of one core
MOST_BYTES = 2**29  # of the derivatives, and of what enters a projection
STEP = 0.02  # of an output's standard deviation
LEAST_STEP = 256  # of what rounding changes, in the type of the output


@dataclass(frozen=True)
class Linearised:
    """A model's outputs to first order in the weights of one projection, from moves of its outputs.

    Attributes
    ----------
    x : (r, n) float64 array
        What enters the projection.
    errors : (r, s) float64 array
        What is missing at the model's outputs.
    jacobians : (r, s, m) float64 array
        How they feel the projection's.
    free : (n, m) boolean array or None
        Weights that may move; None: all.
    intercept : bool
        Whether the bias may.
    """

    x: Matrix
    errors: Matrix
    jacobians: Matrix
    free: NDArray[np.bool_] | None
    intercept: bool

    def steps(self) -> Iterator[tuple[Matrix, Matrix | None]]:
        """From tame to bold, what is added to the (n, m) weights and to the (m,) bias; see `gauss_newton.steps`."""
        return steps(self.x, self.errors, self.jacobians, self.free, intercept=self.intercept)


@dataclass(frozen=True)
class LinearisedByWeight:
    """The same from moves of single weights: (r, s, k) `jacobians` of k `moves`, some of an (n, m) `shape`."""

    errors: Matrix
    jacobians: Matrix
    moves: Sequence[Move]
    shape: tuple[int, int]
    intercept: bool

    def steps(self) -> Iterator[tuple[Matrix, Matrix | None]]:
        """As those of `Linearised`."""
        for found, _ in steps(np.ones((len(self.errors), 1)), self.errors, self.jacobians, intercept=False):
            weights, bias = np.zeros(self.shape), np.zeros(self.shape[1])
            for (i, j), size in zip(self.moves, found[0].tolist(), strict=True):
                if i is None:
                    bias[j] = size
                else:
                    weights[i, j] = size
            yield weights, bias if self.intercept else None


def derivatives(
    original: Session,
    graph: Graph,
    projection: Projection,
    batches: Batches,
    provider: str,
    free: NDArray[np.bool_] | None = None,
    intercept: bool = True,
    mask: str | None = None,
) -> Linearised | LinearisedByWeight | None:
    """What enters a projection, what the outputs lack, and how they feel the projection's weights.

    Parameters
    ----------
    original : Session
    graph : Graph
        The pruned model as it is.
    projection : Projection
        Of `graph`.
    batches : Batches
        Rows held out are left out.
    provider : {"cpu", "cuda"}
    free : (n, m) boolean array, optional
        Weights that may move. Default: all.
    intercept : bool
        Whether the bias may.
    mask : str, optional
        An input whose zeros mark padding: outputs there count for nothing.

    Returns
    -------
    Linearised, LinearisedByWeight or None
        None where rows of the data are not rows of all outputs behind the projection, or of several shapes; where there
        are fewer than `LEAST_ROWS` (or than it takes for that many weights), or that many would take more than
        `MOST_RUNS`, `MOST_MACS` or `MOST_BYTES`; or where something is not finite.

    Raises
    ------
    ModelError, DataError
        If the part behind does not run by itself.
    """
    behind = Behind.of(graph, graph.nodes[projection.node].output[0])
    outputs = [name for name in behind.outputs if name not in graph.fickle_values]
    if not outputs or not graph.random_values.isdisjoint((behind.value, *behind.reads)):
        return None
    if projection.tap not in graph.producer and projection.tap not in {entry.name for entry in graph.inputs}:
        return None  # a constant
    lanes = _Lanes(original, graph, projection, behind, outputs, batches, provider, mask)
    sample = next(_rows(batches, 1))
    first = lanes.seen(sample)
    if first is None:
        return None
    count = projection.m
    if not first.by_rows:
        count = (projection.n * count if free is None else int(free.sum())) + (count if intercept else 0)
    least, most = _rows_for(first, count)
    if most < least:  # before anything is done that takes long
        return None
    counted = macs_by_node(graph, sample, provider) or {}
    macs = sum(counted.get(node, 0) for node in behind.nodes) // sample.rows
    most = min(most, MOST_MACS // (max(1, macs) * count))
    if most < least:
        return None
    found = [lanes.seen(batch) for batch in _rows(batches, most // sample.rows)]
    seen = [part for part in found if part is not None and part.is_like(first)]
    if len(seen) < len(found) or sum(int(part.fit.sum()) for part in seen) < least:
        return None
    moves = _moves(projection, first, free, intercept)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found out in the end
        told = _differentiated(seen, moves)
    if told is None:
        return None
    if not first.by_rows:
        return LinearisedByWeight(*told, moves, (projection.n, projection.m), intercept)
    x = np.concatenate([part.at.entering[part.fit] for part in seen]).astype(np.float64)
    return Linearised(x, *told, free, intercept)


def _rows_for(seen: "_Seen", moves: int) -> tuple[int, int]:
    """How many rows it takes at least, and how many may be had."""
    entries = min(ENTRIES, sum(array[0].size for array in seen.wanted))
    if not moves or not entries:
        return 1, 0
    least = LEAST_ROWS if seen.by_rows else max(LEAST_ROWS, -(-moves // entries))
    held = MOST_BYTES // (8 * 2 * entries * moves + seen.taken)
    return least, 0 if held < len(seen.fit) else min(ROWS, MOST_RUNS // moves, held)


def _moves(projection: Projection, seen: "_Seen", free: NDArray[np.bool_] | None, intercept: bool) -> list[Move]:
    """Of all outputs; or of all weights that may move, and of the bias."""
    outputs = [Move(None, j) for j in range(projection.m)]
    if seen.by_rows:
        return outputs
    places = np.argwhere(np.ones((projection.n, projection.m), bool) if free is None else free)
    return [*starmap(Move, places.tolist()), *(outputs if intercept else ())]


def _rows(batches: Batches, count: int) -> Iterator[Batch]:
    """So many rows, or batches of the size that the model fixes, evenly spaced among those that may be fitted."""
    fit = all_of(OtherFour(batches.rows))
    rows = picked(batches, fit[spread(len(fit), max(1, count))])
    return rows if batches.fixed else stacked(rows, BATCH)  # one after the other: images are large


@dataclass(frozen=True)
class _Seen:
    """One batch: what the projection reads and computes, what else is read behind, and the original's outputs.

    Of outputs with padding, `padding` is where; there they are zero. `fit` are the rows that may be fitted, `counted`
    the positions of the projection that are theirs and no padding.
    """

    back: Session
    at: Positions
    by_rows: bool
    fed: Mapping[str, Array]
    wanted: Sequence[Matrix]
    floats: Sequence[int]
    padding: Sequence[NDArray[np.bool_] | None]
    fit: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    @property
    def taken(self) -> int:
        """Bytes that a row takes: what is kept, and what of it is copied on the way."""
        copies = 2 * self.at.x.nbytes if self.by_rows else self.at.bytes_entering + 6 * self.at.y.nbytes
        arrays = (self.at.x, self.at.y, *self.fed.values(), *self.wanted)
        return (copies + sum(array.nbytes for array in arrays)) // len(self.fit)

    def is_like(self, other: "_Seen") -> bool:
        """Whether both can be put together."""
        shapes = [[array.shape[1:] for array in part.wanted] for part in (self, other)]
        return self.by_rows == other.by_rows and shapes[0] == shapes[1]

    def outputs(self, y: Array) -> list[Matrix]:
        """Of the model as it is, (r, ...) each, where the projection gives y."""
        name = self.back.inputs[0][0]
        given = self.back.run(Batch({name: y, **self.fed}, 0, len(self.fit)))
        return _blanked([given[place] for place in self.floats], self.padding)

    def moved(self, move: Move, size: float) -> tuple[list[Matrix], Matrix]:
        """Its outputs after a move; and its size: of outputs (r, 1), as rounding lets it be, of a weight (1, 1)."""
        y = self.at.moved(move, size)
        if not self.by_rows:
            return self.outputs(y), np.array([[size]])
        by = replace(self.at, y=y).computed[:, move.j] - self.at.computed[:, move.j]
        return self.outputs(y), by.astype(np.float64)[:, None]


def _blanked(outputs: Sequence[Array], padding: Sequence[NDArray[np.bool_] | None]) -> list[Matrix]:
    """As float64, with zeros where there is padding."""
    return [blanked(array.astype(np.float64), blank) for array, blank in zip(outputs, padding, strict=True)]


class _Lanes:
    """What computes all that is seen of one projection.

    Parameters
    ----------
    original : Session
    graph : Graph
        The model as it is.
    projection : Projection
    behind : Behind
    outputs : sequence of str
        Those that are looked at.
    batches : Batches
    provider : {"cpu", "cuda"}
    mask : str or None
    """

    def __init__(
        self,
        original: Session,
        graph: Graph,
        projection: Projection,
        behind: Behind,
        outputs: Sequence[str],
        batches: Batches,
        provider: str,
        mask: str | None,
    ) -> None:
        self._fixed = batches.fixed
        self._graph, self._projection, self._behind = graph, projection, behind
        self._outputs, self._provider = outputs, provider
        self._padding = Padding(graph.model, mask)
        self._front = behind.front(graph, provider, projection.tap)
        self._whole = original
        self._back: Session | None = None

    def seen(self, batch: Batch) -> _Seen | None:
        """None where rows of the data are not rows of the outputs, or not all is finite."""
        values = self._behind.values(self._front, batch, self._projection.tap)
        fed = {name: values[name] for name in (self._behind.value, *self._behind.reads)}
        if self._back is None:
            self._back = self._behind.back(self._graph, fed, self._outputs, self._provider)
        y, x = fed.pop(self._behind.value), values[self._projection.tap]
        answers = dict(zip((name for name, *_ in self._whole.outputs), self._whole.run(batch), strict=True))
        wanted = [answers[name] for name in self._outputs]
        floats = [place for place, array in enumerate(wanted) if is_float(array)]
        if not floats or not (is_float(x) and is_float(y)) or min(x.ndim, y.ndim) < 2:
            return None
        padding = [self._padding.of(batch, wanted[place], self._outputs[place]) for place in floats]
        given = _blanked([wanted[place] for place in floats], padding)
        if any(not array.ndim or len(array) != batch.rows for array in given):
            return None
        if not all(np.isfinite(array).all() for array in (x, y, *given)):
            return None
        fit = np.ones(batch.rows, bool)
        if batch.rows > 1 and self._fixed:  # a whole batch, with rows in it that are held out
            fit = ~rows_held_out(np.arange(batch.rows), batch.rows, batch)
        at = Positions(self._projection, x, y)
        by_rows = at.are_rows(batch.rows)
        counted = fit if by_rows else at.of_rows(fit)
        blank = None if self._projection.patch is not None else self._padding.of(batch, y)
        if blank is not None:
            counted = counted & ~np.repeat(blank.ravel(), len(counted) // blank.size)
        return _Seen(self._back, at, by_rows, fed, given, floats, padding, fit, counted)


def _differentiated(seen: Sequence[_Seen], moves: Sequence[Move]) -> tuple[Matrix, Matrix] | None:
    """What the outputs lack, and how they feel each move, made by itself."""
    outputs = range(len(seen[0].floats))
    kinds = [
        Kind.of([part.wanted[place] for part in seen], padded=any(part.padding[place] is not None for part in seen))
        for place in outputs
    ]
    wanted = [as_scores(part.wanted, kinds) for part in seen]
    powers = [
        sum(float((told[place][part.fit] ** 2).sum()) for told, part in zip(wanted, seen, strict=True))
        for place in outputs
    ]
    scales = [1 / np.sqrt(power) if power > 0 else 0.0 for power in powers]
    sizes = _sizes(seen, moves)
    if not any(scales) or sizes is None:
        return None
    rows = sum(int(part.fit.sum()) for part in seen)
    errors, jacobians, sections = np.empty((rows, 0)), np.empty((rows, 0, len(moves))), [0]
    first = 0
    for part, old in zip(seen, wanted, strict=True):
        now = as_scores(part.outputs(part.at.y), kinds)
        lacking = Lacking(old, now, scales, kinds)
        if part is seen[0]:
            sections = [0, *accumulate(told.shape[1] for told in lacking.errors)]
            errors = np.empty((rows, sections[-1]))
            jacobians = np.empty((rows, sections[-1], len(moves)))  # once: it may be large
        own = slice(first, first := first + int(part.fit.sum()))
        errors[own] = np.concatenate(lacking.errors, axis=1)[part.fit]
        for number, (move, size) in enumerate(zip(moves, sizes.tolist(), strict=True)):
            then, by = part.moved(move, size)
            change = [new - before for new, before in zip(as_scores(then, kinds), now, strict=True)]
            told = np.concatenate(lacking.felt(change), axis=1) / np.where(by == 0, np.inf, by)
            jacobians[own, :, number] = told[part.fit]
    for number, (start, stop) in enumerate(pairwise(sections)):
        size = float((errors[:, start:stop] ** 2).sum())
        # What is left of a divergence may be rounding alone, which shall not count as much as the change.
        weight = 0.0 if number and size < 2 * NO_DIVERGENCE * rows else 1 / (np.sqrt(size) or 1.0)
        errors[:, start:stop] *= weight
        jacobians[:, start:stop] *= weight
    return (errors, jacobians) if np.isfinite(errors).all() and np.isfinite(jacobians).all() else None


def _sizes(seen: Sequence[_Seen], moves: Sequence[Move]) -> NDArray[np.float64] | None:
    """Of each move: what moves its output by a small part of the deviation. None where nothing computed varies."""
    y = np.concatenate([part.at.computed[part.counted] for part in seen]).astype(np.float64)
    if not len(y):
        return None
    deviation = y.std(0)
    widest = float(deviation.max())
    if not np.isfinite(widest) or widest <= 0:
        return None
    rounding = LEAST_STEP * float(np.finfo(seen[0].at.y.dtype).eps)
    wanted = np.maximum(STEP * np.where(deviation > 0, deviation, widest), rounding * np.sqrt((y**2).mean(0)))
    sizes = np.empty(len(moves))
    for number, move in enumerate(moves):
        power = 1.0
        if move.i is not None:
            power = sum(float((part.at.by(move)[part.counted].astype(np.float64) ** 2).sum()) for part in seen) / len(y)
        sizes[number] = wanted[move.j] / np.sqrt(power) if power > 0 else 0.0
    return sizes
