"""The stages of pruning one model, in their order: how many stay, by which method, again, and moved once more."""

from dataclasses import dataclass

from onnx import ModelProto

from onnxdpp.budget import allocate
from onnxdpp.graph.scratch import Scratch
from onnxdpp.job import Job
from onnxdpp.planning import Plan
from onnxdpp.polishing import polished
from onnxdpp.pruning import Watch, execute
from onnxdpp.report import LayerResult
from onnxdpp.rivals import Rival, rivalled
from onnxdpp.sweeping import swept


@dataclass(frozen=True)
class Pruned:
    """What came of a plan.

    Attributes
    ----------
    model : ModelProto
        Not yet verified.
    layers : list of LayerResult
    left : list of int
        Onto how many inputs the consumers of each layer were refitted at most.
    rivals : list of Rival
        Whole runs that were tried.
    notices : list of str
    """

    model: ModelProto
    layers: list[LayerResult]
    left: list[int]
    rivals: list[Rival]
    notices: list[str]


def carry_out(job: Job, todo: Plan, scratch: Scratch, watch: Watch | None = None) -> Pruned:
    """Prune a model as its options say.

    Parameters
    ----------
    job : Job
    todo : Plan
        Which layers may be pruned; how many stay, where no goal is to say so.
    scratch : Scratch
        Where pruned weights are put instead of into memory; it must outlive the result.
    watch : callable (target, solution), optional
        Told what becomes of each layer.

    Raises
    ------
    UsageError, ModelError, DataError, MachineError
        As the stages do.
    """
    notices: list[str] = []
    if job.options.has_goal:
        todo, told = allocate(job, todo)
        notices += told
    job, rivals = rivalled(job, todo)
    if job.options.sweeps:
        _, layers, _ = execute(job, todo, hold_out=True)
        todo, gained = swept(job, todo, layers)
        notices.append(gained)
    model, layers, left = execute(job, todo, scratch=scratch, watch=watch)
    if job.options.polish:
        model, gained = polished(job, model, todo, scratch)
        notices.append(gained)
    return Pruned(model, layers, left, rivals, notices)
