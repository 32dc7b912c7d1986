"""Numbers of neurons on their way: what Shape gives, and who may look at it.

The size of an axis that carries neurons changes with them. It may go, through operators that only move numbers, into
the target of a Reshape, Expand or Resize, and there become the size of the axis that carries these neurons (their
entries of the table see to that). Whoever else reads it might compute with it, and its neurons stay.
"""

import numpy as np

from onnxdpp.graph.flow import Step
from onnxdpp.graph.index import ONNX_DOMAINS
from onnxdpp.graph.shapes import Entry

MOVING = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
TARGETS = ("Expand", "Reshape", "Resize")


def watch(step: Step) -> None:
    """Follow the numbers of neurons that reach a node; pin the neurons where it might compute with them."""
    for slot in range(len(step.node.input)):
        labels = step.sizes(slot)
        if labels is None:
            continue
        onnx_own = step.node.domain in ONNX_DOMAINS
        if onnx_own and step.node.op_type in TARGETS and slot > 0:
            if not _only_along(step, slot):
                step.pin(labels, "reads how many neurons there are")
            continue
        if not (onnx_own and step.node.op_type in MOVING and (slot == 0 or step.node.op_type == "Concat")):
            step.pin(labels, "reads how many neurons there are")
        elif _holds(step):
            known = step.sizes_of(step.node.output[0])
            step.give_sizes(labels if known is None else np.concatenate([known, labels]))
    name = step.node.output[0] if step.node.output else ""
    given = step.sizes_of(name)
    if given is not None and (name in step.graph.outputs or name in step.graph.captured):
        step.pin(given, "gives out how many neurons there are")


def _only_along(step: Step, slot: int) -> bool:
    """Whether a target shape has sizes of neurons for no axis but the one that carries neurons in the result."""
    entries, result = step.shapes.entries(step.use(slot)), step.carried_by(step.node.output[0])
    if entries is None or result is None or step.setting("axes", None) is not None:
        return False
    return not any(_may_hold(step, entry) for place, entry in enumerate(entries) if place != len(entries) + result.axis)


def _may_hold(step: Step, entry: Entry) -> bool:
    """Whether one number may be the size of an axis that carries neurons."""
    if entry.dimension is None:
        return entry.value is None
    name, axis = entry.dimension
    carried, rank = step.carried_by(name), step.shapes.rank(name)
    return carried is not None and (rank is None or carried.axis + rank == axis)


def _holds(step: Step) -> bool:
    """Whether the output may hold the size of an axis that carries neurons."""
    uses = step.graph.uses.get(step.node.output[0], [])
    entries = step.shapes.entries(uses[0]) if uses else None
    return entries is None or any(_may_hold(step, entry) for entry in entries)
