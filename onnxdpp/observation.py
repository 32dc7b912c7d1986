"""From a layer and calibration data to the moments that its choice and its refit need.

A *reading* is all that reads one tap: the projections whose inputs are the same rows, their weights side by side. Where
the moments of a reading would pass the memory allowed (the patches of a wide convolution, a flattened image), channels
are observed instead of inputs: then dropped channels are written as mixtures of kept ones, the same at all places.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxdpp.algebra.moments import Accumulator, Matrix
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import Fit
from onnxdpp.errors import DataError
from onnxdpp.graph.batches import Batch, Batches, rows_held_out
from onnxdpp.graph.calibration import Observer, Seen
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.padding import Padding
from onnxdpp.graph.patches import Patch
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.taps import PER_COLUMN, Sampling, Tap, observations
from onnxdpp.graph.walking import quoted
from onnxdpp.options import Options

# Accumulators that blocks go to in turn: constants, so that sums do not depend on the machine.
LANES = 4
WIDE = 4096  # inputs from which on there is one accumulator only, since each holds n² numbers

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Reading:
    """All that reads one tap.

    Attributes
    ----------
    tap : Tap
    neurons : (N,) integer array
        The neuron of each input; -1 for inputs that always stay.
    parts : tuple of (Projection, indices)
        What reads it, and which of its outputs are of interest.
    weights : (N, m) float64 array
        Original weights of all these outputs, side by side; of channels, diagonal: the norms of what leaves each.
    places : (C, block) integer array or None
        Where channels are observed: the inputs of the projections that belong to each.
    left : integer array or None
        The inputs that are left in the model as pruned so far; None: all.
    """

    tap: Tap
    neurons: Indices
    parts: tuple[tuple[Projection, Indices], ...]
    weights: Matrix
    places: Indices | None = None
    left: Indices | None = None

    def rows(self, x: Array) -> Array:
        """Observations, from the rows of the tap: a row for each place where it is channels that are observed."""
        if self.places is None or self.tap.patch is not None:
            return x
        return np.swapaxes(x[:, self.places], 1, 2).reshape(-1, len(self.places))

    def fitted(self, graph: Graph, fit: Fit) -> list[tuple[Projection, Indices, Matrix, Matrix | None]]:
        """Projection, outputs, new weights (N, m) and intercept (m,) of each part, from a fit of this reading."""
        result, first = [], 0
        mixture = None if self.places is None else _mixture(self.weights, fit)
        for projection, outputs in self.parts:
            if mixture is not None and self.places is not None:
                weights, intercept = _mixed(original_weights(graph, projection)[:, outputs], self.places, mixture)
                result.append((projection, outputs, weights, None if fit.intercept is None else intercept))
                continue
            columns = slice(first, first + len(outputs))
            first += len(outputs)
            bias = None if fit.intercept is None else fit.intercept[columns]
            result.append((projection, outputs, fit.weights[:, columns], bias))
        return result


def _mixture(scales: Matrix, fit: Fit) -> tuple[Matrix, Matrix]:
    """Each channel as a mixture of kept ones, and what is added to it."""
    norms = np.diagonal(scales)
    scale = np.where(norms > 0, norms, 1.0)
    offset = np.zeros(len(norms)) if fit.intercept is None else fit.intercept / scale
    return fit.weights / scale, offset


def _mixed(weights: Matrix, places: Indices, mixture: tuple[Matrix, Matrix]) -> tuple[Matrix, Matrix]:
    """Weights and intercept that act on the kept channels as the old ones did on the mixtures."""
    mix, offset = mixture
    blocks = weights[places]  # (C, block, m)
    result = np.zeros_like(weights)
    result[places] = np.tensordot(mix, blocks, axes=(1, 0))
    return result, np.einsum("c,cbm->m", offset, blocks)


def original_weights(graph: Graph, projection: Projection) -> Matrix:
    """W0 of a projection, (n, m) float64."""
    stored = graph.array(graph.name_at(projection.weight))
    assert stored is not None
    return projection.effective(stored)


def side_by_side(graph: Graph, parts: Iterable[tuple[Projection, Indices]]) -> Matrix:
    """W0 of the outputs of some projections, (n, m) float64."""
    return np.hstack([original_weights(graph, part)[:, outputs] for part, outputs in parts])


def readings(
    graph: Graph,
    consumers: Iterable[tuple[Projection, Indices]],
    outputs: Callable[[Projection], Indices],
    memory: int,
) -> list[Reading]:
    """What has to be observed for a layer.

    Parameters
    ----------
    graph : Graph
    consumers : iterable of (Projection, labels)
        The neuron of each entry along the input axis of its constant; -1 for those that always stay.
    outputs : callable
        Which outputs of a projection are of interest.
    memory : int
        Bytes that a matrix of second moments may take.
    """
    grouped: dict[Tap, list[tuple[Projection, Indices, Indices]]] = {}
    for projection, labels in consumers:
        wanted = outputs(projection)
        for group in range(projection.groups):
            part = projection.group(group)
            inside = wanted[(wanted >= part.start) & (wanted < part.stop)]
            own = (
                labels if len(labels) * projection.block == projection.n else np.split(labels, projection.groups)[group]
            )
            tap = Tap(projection.tap, projection.patch, group, projection.groups)
            grouped.setdefault(tap, []).append((projection, np.repeat(own, projection.block), inside))
    return [_reading(graph, tap, parts, memory) for tap, parts in grouped.items()]


def readings_of(
    graph: Graph, layer: Layer, memory: int, outputs: Callable[[Projection], Indices] = lambda part: np.arange(part.m)
) -> list[Reading]:
    """What has to be observed for a layer of neurons, by default for all outputs of its consumers; see `readings`."""
    return readings(graph, [(part, slicing.labels) for part, slicing in layer.consumers], outputs, memory)


def _reading(graph: Graph, tap: Tap, parts: Sequence[tuple[Projection, Indices, Indices]], memory: int) -> Reading:
    neurons = parts[0][1]
    reads = tuple((part, outputs) for part, _, outputs in parts)
    weights = side_by_side(graph, reads)
    if 8 * len(neurons) ** 2 <= memory:
        return Reading(tap, neurons, reads, weights)
    if tap.patch is not None:
        places = np.arange(len(neurons)).reshape(-1, tap.patch.size)
        ones = (1,) * len(tap.patch.kernel)
        tap = Tap(tap.value, Patch(ones, ones, ones, (0,) * (2 * len(ones))), tap.group, tap.groups)
        neurons = neurons[places[:, 0]]
    else:
        counts = np.bincount(neurons[neurons >= 0])
        if (neurons < 0).any() or len(np.unique(counts)) != 1 or counts[0] == 1:
            return Reading(tap, neurons, reads, weights)
        places = np.argsort(neurons, kind="stable").reshape(len(counts), -1)
        neurons = np.arange(len(counts))
    norms = np.sqrt((weights[places] ** 2).sum((1, 2)))
    return Reading(tap, neurons, reads, np.diag(norms), places)


def observe(
    base: Graph,
    now: Graph,
    wanted: Sequence[Reading],
    batches: Batches,
    provider: str,
    options: Options,
    executor: Executor,
    progress: Callable[[float], None],
    name: str,
    *,
    split: bool = False,
    between: bool = False,
) -> tuple[list[Inputs], list[Inputs] | None]:
    """Moments of each reading, from one pass over the data.

    Parameters
    ----------
    base, now : Graph
        The original, and the model as pruned so far.
    wanted : sequence of Reading
    batches : Batches
    provider : {"cpu", "cuda"}
    options : Options
        Mask and seed.
    executor : Executor
        Where moments are summed while the models run.
    progress : callable (fraction)
    name : str
        Of the layer, for messages.
    split : bool
        Whether every fifth row is held out.
    between : bool
        Whether the second moments between outputs are wanted too.

    Returns
    -------
    list of Inputs, list of Inputs or None
        Of the rows to fit, and of those held out; None without `split`, and where nothing is held out.

    Raises
    ------
    DataError
        If nothing is observed, or what is overflows.
    """
    values = {reading.tap.value: _element_type(base, reading.parts[0][0]) for reading in wanted}
    observer = Observer(base, now, list(values.items()), batches, provider)
    count = LANES if max(len(reading.weights) for reading in wanted) < WIDE else 1

    def accumulators() -> list[Accumulator]:
        return [Accumulator(part.weights, paired=observer.paired, left=part.left, between=between) for part in wanted]

    lanes = [(accumulators(), accumulators() if split else None) for _ in range(count)]
    padding = Padding(base.model, options.mask)
    sampling = [Sampling(PER_COLUMN * len(part.weights), batches.rows, options.seed) for part in wanted]
    pending: list[Future[None] | None] = [None] * count
    done = 0
    for number, (batch, seen) in enumerate(observer):
        lane = number % count
        if (before := pending[lane]) is not None:
            before.result()
        pending[lane] = executor.submit(_accumulate, lanes[lane], wanted, sampling, seen, batch, padding)
        done += batch.rows
        progress(done / batches.rows)
    for future in pending:
        if future is not None:
            future.result()
    fit = _moments([lane[0] for lane in lanes], wanted, name)
    if fit is None:
        raise DataError(f"No observation reaches layer {quoted(name)}: its input is empty on these data.")
    held = [lane[1] for lane in lanes if lane[1] is not None]
    return fit, _moments(held, wanted, name) if held else None


def _moments(lanes: Sequence[Sequence[Accumulator]], wanted: Sequence[Reading], name: str) -> list[Inputs] | None:
    """The moments of all lanes together; None where some reading has seen nothing."""
    for other in lanes[1:]:
        for mine, theirs in zip(lanes[0], other, strict=True):
            mine.merge(theirs)
    if not all(accumulator.count for accumulator in lanes[0]):
        return None
    moments = [accumulator.moments() for accumulator in lanes[0]]
    if not all(part.is_finite for part in moments):
        raise DataError(f"The squares of what enters {quoted(name)} overflow float64. Scale the model or the data.")
    return [
        Inputs(part, reading.neurons if reading.left is None else reading.neurons[reading.left])
        for part, reading in zip(moments, wanted, strict=True)
    ]


def _accumulate(
    lane: tuple[Sequence[Accumulator], Sequence[Accumulator] | None],
    wanted: Sequence[Reading],
    sampling: Sequence[Sampling],
    seen: Mapping[str, Seen],
    batch: Batch,
    padding: Padding,
) -> None:
    for number, (reading, sample) in enumerate(zip(wanted, sampling, strict=True)):
        value = seen[reading.tap.value]
        blank = padding.of(batch, value.now)
        for row, x, original in observations(reading.tap, value, batch.first, sample, blank, batch.rows):
            if lane[1] is None:
                _update(lane[0][number], reading, x, original)
                continue
            out = rows_held_out(row, len(value.now), batch)
            for accumulator, which in ((lane[0][number], ~out), (lane[1][number], out)):
                if which.any():
                    _update(accumulator, reading, x[which], None if original is None else original[which])


def _update(accumulator: Accumulator, reading: Reading, x: Array, original: Array | None) -> None:
    accumulator.update(reading.rows(x), None if original is None else reading.rows(original))


def _element_type(graph: Graph, projection: Projection) -> int:
    """Element type of what enters a projection: that of its weight, as the node reads it."""
    array = graph.array(graph.nodes[projection.node].input[1])
    assert array is not None
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
