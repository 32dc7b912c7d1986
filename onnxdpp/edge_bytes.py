"""How large the file of an edge-pruned model will be, before an edge is chosen.

The bytes of a packed weight depend on how many entries stay, and in its form of distances on how they lie: a distance
of more than one step is filled up with zeros. Fillers are most where all distances but one are 1. So the mask that is
weighed has one gap, and no zero among the values nor in the biases: the real file is no larger. What it falls short of
the goal is the fillers that it does without: nothing above one kept entry in eight, up to a sixth far below. The model
is really written and weighed, so that what the form costs beside the values is in it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxdpp.forms import form_of
from onnxdpp.graph.index import Graph
from onnxdpp.graph.model import model_info
from onnxdpp.graph.projections import Projection
from onnxdpp.graph.rewriting import Edits, apply, current, reweighted
from onnxdpp.job import Job
from onnxdpp.planning import Plan
from onnxdpp.pruning import with_intercepts


def bytes_of_edges(job: Job, todo: Plan) -> Callable[[tuple[int, ...]], int]:
    """What tells the bytes of the file once each output of a projection keeps so many of its edges, at most.

    Parameters
    ----------
    job : Job
    todo : Plan
    """
    base, todo = with_intercepts(job, todo)
    options = job.options
    parts = [target.part for target in todo.targets if isinstance(target.part, Projection)]

    def size(counts: tuple[int, ...]) -> int:
        edits: Edits = {}
        for k, part in zip(counts, parts, strict=True):
            intercept = None if part.bias is None or options.refit != "affine" else _moved(base, part)
            edits |= reweighted(base, part, _gapped(base, part, k), intercept)
        form = form_of(apply(base, edits), base.folder, options.storage, options.values)
        return model_info(form.model, base.folder).bytes

    return size


def _gapped(base: Graph, part: Projection, k: int) -> NDArray[np.float64]:
    """The (n, m) matrix of a projection whose outputs keep k edges each, or all they have.

    All but the last entry are at the beginning of the stored weight.
    """
    outputs_first = part.transposed or part.patch is not None
    weights = part.effective(current(base, {}, part.weight))
    count = int(np.minimum(k, np.count_nonzero(weights, axis=0)).sum())
    stored = np.array(weights.T if outputs_first else weights, order="C")
    stored[stored == 0] = 1
    stored.reshape(-1)[max(count, 1) - 1 : -1] = 0
    return stored.T if outputs_first else stored


def _moved(base: Graph, part: Projection) -> NDArray[np.float64]:
    """An intercept after which no entry of the bias is zero."""
    assert part.bias is not None
    bias = current(base, {}, part.bias.use).reshape(-1).astype(np.float64)
    return np.where(bias == 0, 1.0, 0.0)
