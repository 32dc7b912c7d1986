"""How large the file of an edge-pruned model will be, before an edge is chosen.

The bytes of a packed weight depend on how many entries stay, not on which or on what they are. So any mask will do to
learn them: the first k inputs of every output, with no zero among them nor in the biases, so that the real file is no
larger. The model is really written and weighed, so that what the form costs beside the values is in it.
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
            edits |= reweighted(base, part, _first(base, part, k), intercept)
        form = form_of(apply(base, edits), base.folder, options.storage, options.values)
        return model_info(form.model, base.folder).bytes

    return size


def _first(base: Graph, part: Projection, k: int) -> NDArray[np.float64]:
    """The (n, m) matrix of a projection with the first k inputs of each output, none of them zero."""
    weights = np.array(part.effective(current(base, {}, part.weight)))
    weights[weights == 0] = 1
    weights[k:] = 0
    return weights


def _moved(base: Graph, part: Projection) -> NDArray[np.float64]:
    """An intercept after which no entry of the bias is zero."""
    assert part.bias is not None
    bias = current(base, {}, part.bias.use).reshape(-1).astype(np.float64)
    return np.where(bias == 0, 1.0, 0.0)
