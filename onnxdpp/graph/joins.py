"""Entries of the operator table: operators that put entries side by side along an axis, or take some of them."""

import numpy as np

from onnxdpp.graph.atoms import FIXED, Labels
from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.index import Setting
from onnxdpp.graph.shapes import slice_bounds
from onnxdpp.graph.walking import quoted


def concat(step: Step) -> None:
    """Concat: side by side along the neurons' axis; along another axis, all stay or go together."""
    slots = step.carrying()
    first = step.carried(slots[0])
    assert first is not None
    rank, axis = step.rank(slots[0]), step.whole("axis", 1)
    axis -= rank if axis >= 0 else 0
    parts: list[Labels] = []
    for slot in range(len(step.node.input)):
        carried, sizes = step.carried(slot), step.shape(slot)
        if carried is not None and carried.axis != first.axis:
            raise Refuse("joins neurons that lie along different axes")
        if carried is not None:
            parts.append(carried.labels)
        elif axis != first.axis:
            computed = step.graph.why_not_constant(step.name(slot))
            raise Refuse(
                f"joins its neurons with another value: {computed}"
                if computed
                else f"joins its neurons with the constant {quoted(step.name(slot))}"
            )
        elif sizes is None or not isinstance(size := sizes[axis], int):
            raise Refuse(f"puts {step.name(slot)!r}, of unknown size, beside its neurons")
        else:
            parts.append(np.full(size, FIXED, np.intp))
    if axis == first.axis:
        step.give(Carried(axis, np.concatenate(parts)))
        return
    for labels in parts[1:]:
        if len(labels) != len(first.labels):
            raise Refuse(f"joins {len(first.labels)} neurons with {len(labels)}")
        step.unite(first.labels, labels)
    step.give(first)


def split(step: Step) -> None:
    """Split: each part carries its own."""
    carried = step.only()
    axis = step.whole("axis", 0)
    axis -= step.rank() if axis >= 0 else 0
    outputs = range(len(step.node.output))
    if axis != carried.axis:
        for output in outputs:
            step.give(carried, output)
        return
    total = len(carried.labels)
    old = step.graph.opset < 13
    place = Setting(step.index, "split") if old else step.use(1)
    given = step.setting("split", None) if old else step.integers(1)
    if not old and step.name(1) and given is None:
        raise Refuse("has sizes that are computed")
    piece = -(-total // len(outputs))
    whole = [min(piece, total - piece * output) for output in outputs] if given is None else list(given)  # type: ignore[call-overload]
    if sum(whole) != total or len(whole) != len(outputs):
        raise Refuse(f"splits {total} entries into {whole}")
    for output, start in enumerate(np.cumsum([0, *whole[:-1]])):
        labels = step.take(carried.labels, start, start + whole[output])
        step.count(place, output, whole, labels)
        step.give(Carried(axis, labels), output)


def cut(step: Step) -> None:
    """Slice: bounds along the neurons' axis move with them."""
    carried, rank = step.only(), step.rank()
    bounds = slice_bounds(step.graph, step.index)
    if bounds is None:
        raise Refuse("has bounds that are computed")
    labels, total = carried.labels, len(carried.labels)
    for position, bound in enumerate(bounds):
        if bound.axis - (rank if bound.axis >= 0 else 0) != carried.axis:
            continue
        if bound.step != 1:
            raise Refuse(f"takes every {bound.step}th neuron")
        start, stop, _ = slice(bound.start, bound.stop).indices(total)
        if start > 0:
            _bound(step, 1, "starts", [part.start for part in bounds], position, labels, start)
        if stop < total:
            _bound(step, 2, "ends", [part.stop for part in bounds], position, labels, stop)
        labels = step.take(labels, start, max(start, stop))
    step.give(Carried(carried.axis, labels))


def _bound(step: Step, slot: int, name: str, whole: list[int], position: int, labels: Labels, bound: int) -> None:
    place = Setting(step.index, name) if step.graph.opset < 10 else step.use(slot)
    step.count(place, position, whole, labels[:bound], labels[bound:] if whole[position] < 0 else None)


def gather(step: Step) -> None:
    """Gather along another axis."""
    carried, rank = step.only(), step.rank()
    axis = step.whole("axis", 0) % rank
    front = step.front(carried)
    if axis == front:
        raise Refuse("picks neurons")
    behind = step.rank(1) - 1 if axis > front else 0
    step.give(Carried(carried.axis - behind, carried.labels))


def pad(step: Step) -> None:
    """Pad: entries put beside the neurons always stay."""
    carried, rank = step.only(), step.rank()
    given = step.setting("pads", None) if step.graph.opset < 11 else step.integers(1)
    if not isinstance(given, list):
        raise Refuse("has pads that are computed")
    axes = step.integers(3) if len(step.node.input) > 3 and step.name(3) else list(range(rank))
    if axes is None:
        raise Refuse("has axes that are computed")
    front = step.front(carried)
    place = [axis % rank for axis in axes].index(front) if front in {axis % rank for axis in axes} else None
    before, behind = (0, 0) if place is None else (given[place], given[place + len(axes)])
    if (before or behind) and (step.setting("mode", b"constant") != b"constant" or min(before, behind) < 0):
        raise Refuse("pads among its neurons")
    fixed = [np.full(size, FIXED, np.intp) for size in (before, behind)]
    step.give(Carried(carried.axis, np.concatenate([fixed[0], carried.labels, fixed[1]])))
