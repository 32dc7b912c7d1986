"""How strongly a model's outputs feel each output of a projection: what errors there ought to count.

An error e at the outputs y of a projection moves the model's outputs by J e, to first order. So the selection that
serves the model minimises ``E[eᵀ M e]``, with ``M = E[Jᵀ J]`` (m, m), rather than ``E‖e‖²``. The refit stays as it is:
least squares onto the same inputs solves every output by itself.

J comes from forward runs alone, so that any graph will do. On a few calibration rows, each output of the projection is
moved by a tenth of its deviation, with random signs at all positions, and the part of the model behind is run: the
changes of the model's outputs, relative to their own size, are the columns of J. Where several positions lie behind one
another (tokens, pixels), the signs make what crosses between them cancel on average, and M is the sum over positions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Matrix
from onnxdpp.errors import DataError, ModelError
from onnxdpp.graph.attributes import is_float
from onnxdpp.graph.batches import HELD_OUT, Batch, Batches
from onnxdpp.graph.behind import Behind
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.padding import Padding, blanked
from onnxdpp.graph.projections import Projection, weighted_nodes
from onnxdpp.graph.samples import picked, spread, stacked
from onnxdpp.graph.walking import quoted, some_of
from onnxdpp.observation import Reading

ROWS = 64
"""Calibration rows that suffice: on a CIFAR-10 network 40, 120 and 400 gave the same within noise."""
LEAST_ROWS = 8
MOST_BYTES = 2**28  # of all that a run takes: of large images and large outputs, fewer rows are run
SHARE = 4
"""The part behind is run on no more rows, over all outputs of a projection, than this many passes over the data."""
STEP = 0.1  # of an output's standard deviation
LEAST_STEP = 16  # of what rounding changes, in the type of the output
FLOOR = 0.1  # of the mean of M's diagonal, added to it: no error is free
NOT_FELT = "no output of floats is seen to change with one of its consumers"
SKETCH = 4096  # numbers that changes of the outputs are folded into


class Sensitivity:
    """M of projections, each measured when it is asked for, and then remembered.

    Parameters
    ----------
    graph : Graph
        The original.
    batches : Batches
    provider : {"cpu", "cuda"}
    mask : str, optional
        An input whose zeros mark padding: what lies there is neither moved nor looked at.
    """

    def __init__(self, graph: Graph, batches: Batches, provider: str, mask: str | None = None) -> None:
        self._graph = graph
        self._batches = batches
        self._provider = provider
        self._padding = Padding(graph.model, mask)
        self._nodes = {name: index for index, name in weighted_nodes(graph).items()}
        self._known: dict[str, Matrix | str] = {}
        self._unknown: dict[str, str] = {}  # layer -> why its errors count alike

    @property
    def notices(self) -> list[str]:
        """Of which layers the roots were asked for and are not known: one line for each reason."""
        reasons: dict[str, list[str]] = {}
        for layer, reason in self._unknown.items():
            reasons.setdefault(reason, []).append(layer)
        told = []
        for reason, names in reasons.items():
            told.append(f"Sensitivity is left out for {some_of(names)}: {reason}.")
        return told

    def roots(self, wanted: Sequence[Reading], layer: str) -> list[Matrix] | None:
        """For each reading (m, m): the lower triangular root of M of what it reads, its outputs side by side.

        None where M of one of them is not known: errors that count in different units cannot be added. The `notices`
        say so of `layer`, then.
        """
        roots = []
        for reading in wanted:
            root = self._root(reading)
            if isinstance(root, str):
                self._unknown[layer] = root
                return None
            roots.append(root)
        return roots

    def _root(self, reading: Reading) -> Matrix | str:
        """The root, or why there is none."""
        if reading.places is not None:
            return "its channels are observed, not its inputs"
        root = np.zeros((reading.weights.shape[1],) * 2)
        first = 0
        for projection, outputs in reading.parts:
            felt = self.of(projection)
            if isinstance(felt, str):
                return felt
            part = slice(first, first + len(outputs))
            root[part, part] = _root(felt[np.ix_(outputs, outputs)])
            first += len(outputs)
        return root if root.any() else NOT_FELT

    def of(self, projection: Projection) -> Matrix | str:
        """M (m, m) of a projection, in units of squared relative error; or why it cannot be measured."""
        if projection.name not in self._known:
            try:
                self._known[projection.name] = self._measured(projection)
            except (ModelError, DataError):
                self._known[projection.name] = "onnxruntime does not run the part behind it by itself"
        return self._known[projection.name]

    def _measured(self, projection: Projection) -> Matrix | str:
        rows = min(ROWS, self._batches.rows, SHARE * self._batches.rows // projection.m)
        value = self._graph.nodes[self._nodes[projection.name]].output[0]
        behind = Behind.of(self._graph, value)
        outputs = [name for name in behind.outputs if name not in self._graph.fickle_values]
        if rows < LEAST_ROWS:
            least = max(LEAST_ROWS, -(-LEAST_ROWS * projection.m // SHARE))
            return f"{self._batches.rows} calibration rows are too few for {projection.m} outputs, {least} would do"
        if not outputs or not self._graph.random_values.isdisjoint((value, *behind.reads)):
            return "nothing that can be compared lies behind it"
        front = behind.front(self._graph, self._provider)
        back = behind.back(self._graph, behind.values(front, self._rows[0]), outputs, self._provider)

        def moved(batch: Batch) -> _Moved:
            return _Moved(back, value, behind.values(front, batch), projection.axis, partial(self._padding.of, batch))

        with np.errstate(over="ignore", invalid="ignore"):
            rows = max(1, min(rows, MOST_BYTES * self._rows[0].rows // moved(self._rows[0]).taken))
            felt = _felt([moved(batch) for batch in self._sample(rows)])
        return NOT_FELT if felt is None else felt

    @cached_property
    def _rows(self) -> list[Batch]:
        """Evenly spaced calibration rows, none of them held out; or whole batches, where the model fixes their size."""
        each = next(iter(self._batches)).rows if self._batches.fixed else 1
        wanted = spread(self._batches.rows, -(-ROWS // each))
        wanted -= (wanted % HELD_OUT == HELD_OUT - 1) & (wanted > 0)
        return list(picked(self._batches, wanted))

    def _sample(self, count: int) -> list[Batch]:
        """About so many rows, to run together."""
        each = self._rows[0].rows
        rows = [self._rows[i] for i in spread(len(self._rows), -(-count // each))]
        return rows if self._batches.fixed else list(stacked(rows, count))


class _Moved:
    """The outputs of the part behind a projection, for some rows, as they are and when its outputs are moved."""

    def __init__(
        self,
        back: Session,
        value: str,
        values: Mapping[str, Array],
        axis: int,
        padding: Callable[..., NDArray[np.bool_] | None],
    ) -> None:
        self._back = back
        self._name = back.inputs[0][0]
        self._feeds = {name: array for name, array in values.items() if name != value}
        self._padding = padding
        self._axis = axis
        self._y = np.moveaxis(values[value], axis, -1)
        signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=self._y.shape[:-1])
        self._signs = blanked(signs, padding(self._y))
        self._still = self._run(self._y)

    @property
    def y(self) -> Matrix:
        """The outputs of the projection (r, m) at all positions that count; 0 where they are not finite."""
        y = self._y[self._signs != 0].astype(np.float64)
        return np.where(np.isfinite(y), y, 0)

    @property
    def rounding(self) -> float:
        """Of the outputs of the projection, relative."""
        return float(np.finfo(self._y.dtype).eps)

    @property
    def taken(self) -> int:
        """Bytes that a run takes, outputs in float64 three times over."""
        read = self._y.nbytes + sum(array.nbytes for array in self._feeds.values())
        return read + sum(3 * part.nbytes for part in self._still) + 1

    @property
    def power(self) -> list[float]:
        """Sum of squares of each output."""
        return [float((array**2).sum()) for array in self._still]

    def change(self, output: int, by: float, scales: Sequence[float]) -> Matrix:
        """(s,): how all outputs change when one output of the projection is moved, each output times its scale."""
        y = self._y.copy()
        y[..., output] += (self._signs * by).astype(y.dtype)
        moved = self._run(y)
        if [array.shape for array in moved] != [array.shape for array in self._still]:
            raise ModelError(f"The shapes of the outputs depend on the values of {quoted(self._name)}.")
        parts = zip(moved, self._still, scales, strict=True)
        return _folded(np.concatenate([scale * (new - old).ravel() for new, old, scale in parts]))

    def _run(self, y: Array) -> list[Matrix]:
        feeds = {self._name: np.ascontiguousarray(np.moveaxis(y, -1, self._axis)), **self._feeds}
        given = self._back.run(Batch(feeds, 0, 1))
        floats = [
            blanked(array, self._padding(array, name))
            for (name, *_), array in zip(self._back.outputs, given, strict=True)
            if is_float(array)
        ]
        return [np.where(np.isfinite(array), array, 0).astype(np.float64) for array in floats]


def _felt(moved: Sequence[_Moved]) -> Matrix | None:
    """M (m, m), from the changes when each output is moved by itself."""
    powers = np.sum([part.power for part in moved], axis=0)
    y = np.concatenate([part.y for part in moved])
    if not len(y):
        return None
    deviation = y.std(0)
    if not np.any(powers) or not np.isfinite(powers).all() or not deviation.any() or not np.isfinite(deviation).all():
        return None
    steps = STEP * np.where(deviation > 0, deviation, deviation.mean())
    steps = np.maximum(steps, LEAST_STEP * moved[0].rounding * np.sqrt((y**2).mean(0)))
    scales = [1 / np.sqrt(power) if power > 0 else 0.0 for power in powers]
    felt = np.zeros((len(steps), len(steps)))
    for part in moved:
        changes = np.stack([part.change(output, step, scales) / step for output, step in enumerate(steps.tolist())])
        felt += changes @ changes.T
    return felt if np.isfinite(felt).all() else None


def _folded(changes: Matrix) -> Matrix:
    """Fewer numbers, if they are many, whose inner products are the same on average: sums with random signs."""
    if len(changes) <= SKETCH:
        return changes
    signed = changes * _signs(len(changes))
    folded: Matrix = np.pad(signed, (0, -len(signed) % SKETCH)).reshape(-1, SKETCH).sum(0)
    return folded


@lru_cache(maxsize=1)
def _signs(count: int) -> Matrix:
    return np.random.default_rng(1).choice(np.array([-1.0, 1.0]), size=count)


def _root(felt: Matrix) -> Matrix:
    """Lower triangular, of M and a floor."""
    scale = float(np.trace(felt)) / max(1, len(felt))
    if scale <= 0:
        return np.zeros_like(felt)
    return np.asarray(np.linalg.cholesky(felt + FLOOR * scale * np.eye(len(felt))), np.float64)
