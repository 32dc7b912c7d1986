"""Which of several pruned models answers most like the original, on rows that none of them was fitted to.

The relative L2 of the worst output decides. Where models are equally near by that (within `CLOSE` of the best), and an
output is a row of numbers for each row of data, as the scores of classes are, the smaller Kullback-Leibler divergence
of their softmax does: on an MNIST network its correlation with test accuracy was -0.98, the L2's -0.87 to -0.97.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto
from scipy.special import log_softmax

from onnxdpp.algebra.moments import Matrix
from onnxdpp.answers import relative_l2
from onnxdpp.errors import DataError, ModelError
from onnxdpp.graph.batches import Batch, Batches, rows_held_out
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.padding import Padding
from onnxdpp.graph.picks import Fifth, all_of
from onnxdpp.graph.samples import picked, spread, stacked

ROWS = 2048
BATCH = 256
MOST_BYTES = 2**27  # of the rows, and of the outputs for them: of large images, fewer are compared
CLOSE = 1.1


@dataclass(frozen=True)
class Judgement:
    """How far a model is from the original.

    Attributes
    ----------
    discrepancy : float
        Relative L2 of the worst float output; infinite where one is not finite, or zero in the original alone.
    divergence : float or None
        Mean Kullback-Leibler divergence in nats, over the outputs that may be scores of classes; None without any.
    rest : float
        Where an output is zero in the original alone: relative L2 of the worst of the others.
    """

    discrepancy: float
    divergence: float | None
    rest: float = np.inf

    @property
    def distance(self) -> tuple[float, float]:
        """What models are ordered by."""
        return self.discrepancy, self.rest


class Judge:
    """Compares models with the original on up to `ROWS` of the rows held out.

    Parameters
    ----------
    graph : Graph
        The original.
    batches : Batches
    provider : {"cpu", "cuda"}
    mask : str, optional
        An input whose zeros mark padding: outputs there are not looked at.
    """

    def __init__(self, graph: Graph, batches: Batches, provider: str, mask: str | None = None) -> None:
        self._graph = graph
        self._batches = batches
        self._provider = provider
        self._padding = Padding(graph.model, mask)

    def judge(self, model: ModelProto) -> Judgement | None:
        """A model with the same outputs; None where there is nothing to compare."""
        before = self._original
        if before is None:
            return None
        try:
            after = self._outputs(model)
        except (ModelError, DataError):
            return Judgement(np.inf, None)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._compared(before, after)

    def _compared(self, before: Sequence[Matrix], after: Sequence[Matrix]) -> Judgement | None:
        distances, divergences = [], []
        for old, new in zip(before, after, strict=True):
            sound = np.isfinite(old)
            if old.shape != new.shape or not np.isfinite(new[sound]).all():
                return Judgement(np.inf, None)
            whole = float((old[sound] ** 2).sum())
            if not np.isfinite(whole):
                return None
            if sound.any():
                distances.append(relative_l2(float(((new[sound] - old[sound]) ** 2).sum()), whole))
            if old.ndim == 2 and old.shape[1] > 1 and len(old) and sound.all():
                divergences.append(_divergence(old, new))
        if not distances:
            return None
        worst = max(distances)
        rest = np.inf if np.isfinite(worst) else max(filter(np.isfinite, distances), default=0.0)
        return Judgement(worst, float(np.sum(divergences)) if divergences else None, rest)

    @cached_property
    def _original(self) -> list[Matrix] | None:
        """The answers of the original; None where it fails, which the verification of the whole will say."""
        try:
            return self._outputs(self._graph.model)
        except (ModelError, DataError):
            return None

    @cached_property
    def _rows(self) -> list[Batch]:
        held = all_of(Fifth(self._batches.rows))
        if not len(held):
            return []
        (row,) = picked(self._batches, held[:1])
        outputs = Session(self._graph.model, self._provider, self._graph.folder).run(row)
        taken = sum(array.nbytes for array in (*row.feeds.values(), *outputs) if isinstance(array, np.ndarray))
        most = max(1, min(ROWS, MOST_BYTES * row.rows // max(1, taken)))
        rows = picked(self._batches, held[spread(len(held), most)])
        return list(rows if self._batches.fixed else stacked(rows, BATCH))

    def _outputs(self, model: ModelProto) -> list[Matrix]:
        """Of each float output all rows, one after the other; what has another shape in each batch is left out."""
        session = Session(model, self._provider, self._graph.folder)
        left_out = self._graph.fickle_values
        outputs = [
            place for place, (name, kind, _) in enumerate(session.outputs) if _is_float(kind) and name not in left_out
        ]
        found: list[list[Array]] = [[] for _ in outputs]
        for batch in self._rows:
            given = session.run(batch)
            for parts, place in zip(found, outputs, strict=True):
                parts.append(self._held_out(given[place], session.outputs[place][0], batch))
        return [_joined(parts) for parts in found if parts]

    def _held_out(self, output: Array, name: str, batch: Batch) -> Array:
        padding = self._padding.of(batch, output, name)
        if self._batches.fixed and output.ndim and batch.rows > 1:
            held = rows_held_out(np.arange(len(output)), len(output), batch)
            output, padding = output[held], None if padding is None else padding[held]
        return output if padding is None else np.asarray(output[~padding])


def best_of(judgements: Sequence[Judgement]) -> int:
    """The number of the best."""
    discrepancy, rest = min(judgement.distance for judgement in judgements)
    near = CLOSE * discrepancy, CLOSE * rest
    close = [i for i, judgement in enumerate(judgements) if judgement.distance <= near]
    return min(close, key=lambda i: (judgements[i].divergence or 0.0, judgements[i].distance, i))


def _is_float(kind: str) -> bool:
    return kind in ("tensor(float)", "tensor(double)", "tensor(float16)")


def _joined(parts: Sequence[Array]) -> Matrix:
    """All rows together where they have the same shape, or else all numbers."""
    if all(part.shape[1:] == parts[0].shape[1:] and part.ndim for part in parts):
        return np.concatenate(parts).astype(np.float64)
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


def is_distribution(scores: Matrix) -> bool:
    """Whether each row is probabilities that add up to 1, not scores that a softmax would make such of."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-3))


def _divergence(old: Matrix, new: Matrix) -> float:
    """Mean over rows, in nats: of the outputs as they are where they are probabilities, else of their softmax."""
    if is_distribution(old):
        before, after = (np.log(np.clip(part, 1e-12, None)) for part in (old, new))
    else:
        before, after = (np.asarray(log_softmax(part, axis=1)) for part in (old, new))
    return float(max(0.0, (np.exp(before) * (before - after)).sum(1).mean()))
