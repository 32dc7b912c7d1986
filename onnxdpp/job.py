"""What all stages of pruning one model share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from onnxdpp.graph.batches import Batches
from onnxdpp.graph.index import Graph
from onnxdpp.options import Options
from onnxdpp.sensitivity import Sensitivity

Progress: TypeAlias = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """A model to be pruned, and with what.

    Attributes
    ----------
    graph : Graph
        The original.
    options : Options
    batches : Batches
        Calibration data that may be fitted.
    provider : {"cpu", "cuda"}
    progress : callable (text, fraction)
    sensitivity : Sensitivity
        Of the original; asked only where the options want it.
    judged : Batches or None
        Other rows, which a goal is judged on; nothing is fitted to them, and no candidate chosen by them.
    """

    graph: Graph
    options: Options
    batches: Batches
    provider: str
    progress: Progress
    sensitivity: Sensitivity
    judged: Batches | None = None

    @classmethod
    def of(
        cls,
        graph: Graph,
        options: Options,
        batches: Batches,
        provider: str,
        progress: Progress,
        judged: Batches | None = None,
    ) -> "Job":
        """With sensitivities of its own, none of them measured yet."""
        sensitivity = Sensitivity(graph, batches, provider, options.mask)
        return cls(graph, options, batches, provider, progress, sensitivity, judged)
