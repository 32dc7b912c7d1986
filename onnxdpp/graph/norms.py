"""Entries of the operator table: normalisations."""

import numpy as np

from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.index import Setting


def batch(step: Step) -> None:
    """BatchNormalization: scale, bias, mean and variance go with the channels."""
    carried = step.only()
    if step.whole("training_mode", 0):
        raise Refuse("normalizes by the batch (training mode)")
    step.unread(range(1, len(step.node.output)))
    if step.front(carried) == 1:
        _parameters(step, carried, (1, 2, 3, 4))
    step.give(carried)


def instance(step: Step) -> None:
    """InstanceNormalization: scale and bias go with the channels, each of which is normalized by itself."""
    carried = step.only()
    axis = step.front(carried)
    if axis > 1:
        raise Refuse("mixes neurons")
    if axis == 1:
        _parameters(step, carried, (1, 2))
    step.give(carried)


def group(step: Step) -> None:
    """GroupNormalization: the channels of a group stay or go together, and their number of groups with them."""
    carried = step.only()
    if step.front(carried) != 1:
        raise Refuse("mixes neurons")
    groups = step.whole("num_groups", 1)
    labels = carried.labels.reshape(groups, -1)
    step.unite(np.repeat(labels[:, 0], labels.shape[1]), carried.labels)
    heads = Carried(carried.axis, labels[:, 0])
    # Until opset 21 there is one scale for each group.
    if all((constant := step.constant(slot)) is not None and len(constant) == groups for slot in (1, 2)):
        _parameters(step, heads, (1, 2))
    else:
        _parameters(step, carried, (1, 2))
    step.count(Setting(step.index, "num_groups"), 0, (groups,), heads.labels)
    step.give(carried)


def layer(step: Step) -> None:
    """LayerNormalization and RMSNormalization: the axes from `axis` on are mixed, those before are not."""
    carried = step.only()
    rank, axis = step.rank(), step.whole("axis", -1)
    first = axis + rank if axis < 0 else axis
    if step.front(carried) >= first:
        raise Refuse("mixes neurons")
    step.unread(range(1, len(step.node.output)))
    for slot in range(1, len(step.node.input)):
        if step.name(slot) and step.rank(slot) > rank - first:
            raise Refuse("scales the axes before the normalized ones")
    step.give(carried)


def softmax(step: Step) -> None:
    """Softmax and its like: one axis is mixed; before opset 13, all from there on."""
    carried = step.only()
    rank, old = step.rank(), step.graph.opset < 13
    axis = step.whole("axis", 1 if old else -1)
    axis += rank if axis < 0 else 0
    front = step.front(carried)
    if front >= axis if old else front == axis:
        raise Refuse("mixes neurons")
    step.give(carried)


def _parameters(step: Step, carried: Carried, slots: tuple[int, ...]) -> None:
    """Let the vectors at `slots` be sliced along with the neurons."""
    for slot in slots:
        constant = step.constant(slot)
        if constant is None:
            raise Refuse(f"has a parameter that is not constant: {step.graph.why_not_constant(step.name(slot))}")
        if constant.shape != (len(carried.labels),):
            raise Refuse(f"has a parameter of shape {constant.shape} for {len(carried.labels)} neurons")
        step.follow(slot, 0, carried.labels)
