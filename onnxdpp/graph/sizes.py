"""Numbers of neurons on their way: what Shape gives, and who may look at it.

The size of an axis that carries neurons changes with them. It may go, through operators that only move numbers, into
the target of a Reshape, Expand or Resize of a value that carries neurons itself: those look at each number. Whoever
else reads it might compute with it, and its neurons stay.
"""

import numpy as np

from onnxdpp.graph.flow import Step
from onnxdpp.graph.index import ONNX_DOMAINS

MOVING = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
TARGETS = ("Expand", "Reshape", "Resize")


def watch(step: Step) -> None:
    """Follow the numbers of neurons that reach a node; pin the neurons where it might compute with them."""
    for slot in range(len(step.node.input)):
        labels = step.sizes(slot)
        if labels is None:
            continue
        onnx_own = step.node.domain in ONNX_DOMAINS
        if onnx_own and step.node.op_type in TARGETS and slot > 0 and step.carried(0) is not None:
            continue
        if not (onnx_own and step.node.op_type in MOVING):
            step.pin(labels, "reads how many neurons there are")
        elif _holds(step):
            known = step.sizes_of(step.node.output[0])
            step.give_sizes(labels if known is None else np.concatenate([known, labels]))
    name = step.node.output[0] if step.node.output else ""
    given = step.sizes_of(name)
    if given is not None and (name in step.graph.outputs or name in step.graph.captured):
        step.pin(given, "gives out how many neurons there are")


def _holds(step: Step) -> bool:
    """Whether the output may hold the size of an axis that carries neurons."""
    uses = step.graph.uses.get(step.node.output[0], [])
    entries = step.shapes.entries(uses[0]) if uses else None
    if entries is None:
        return True
    for entry in entries:
        if entry.value is None and entry.dimension is None:
            return True
        if entry.dimension is not None:
            name, axis = entry.dimension
            carried, rank = step.carried_by(name), step.shapes.rank(name)
            if carried is not None and (rank is None or carried.axis + rank == axis):
                return True
    return False
