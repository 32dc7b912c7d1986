"""Entries of the operator table: operators that move, spread, gather or reduce entries without computing on them."""

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxdpp.graph.atoms import FIXED, Labels
from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.index import Setting
from onnxdpp.graph.reshaping import moved
from onnxdpp.graph.shapes import slice_bounds

__all__ = ["Labels"]


def transpose(step: Step) -> None:
    """Transpose: the neurons' axis moves."""
    carried, rank = step.only(), step.rank()
    order = step.setting("perm", None) or range(rank)[::-1]
    assert isinstance(order, Sequence)
    step.give(Carried(list(order).index(step.front(carried)) - rank, carried.labels))


def flatten(step: Step) -> None:
    """Flatten to two axes."""
    step.only()
    shape = step.shape(0)
    if shape is None:
        raise Refuse("has an input of unknown rank")
    axis = step.whole("axis", 1)
    axis += len(shape) if axis < 0 else 0

    def size(part: Sequence[object]) -> int | None:
        return prod(part) if all(isinstance(entry, int) for entry in part) else None  # type: ignore[arg-type]

    _reshaped(step, [size(shape[:axis]), size(shape[axis:])])


def squeeze(step: Step) -> None:
    """Squeeze: axes of size 1 go."""
    carried, rank = step.only(), step.rank()
    shape, axes = step.shape(0), _axes(step)
    assert shape is not None
    gone = [axis for axis in range(rank) if shape[axis] == 1] if axes is None else [axis % rank for axis in axes]
    if axes is None and not all(isinstance(size, int) for size in shape):
        raise Refuse("drops axes that are not known")
    front = step.front(carried)
    if front in gone:
        raise Refuse("drops the axis of its neurons")
    step.give(Carried(carried.axis + sum(axis > front for axis in gone), carried.labels))


def unsqueeze(step: Step) -> None:
    """Unsqueeze: axes of size 1 come."""
    carried, rank, axes = step.only(), step.rank(), _axes(step)
    if axes is None:
        raise Refuse("has axes that are computed")
    total = rank + len(axes)
    new = {axis % total for axis in axes}
    old = [axis for axis in range(total) if axis not in new]
    step.give(Carried(old[step.front(carried)] - total, carried.labels))


def reshape(step: Step) -> None:
    """Reshape: entries stay in their order, so that what becomes of an axis is known where sizes are."""
    carried = step.only()
    entries = step.shapes.entries(step.use(1))
    before, inferred = step.shape(0), step.output_shape()
    if before is None or (entries is None and inferred is None):
        raise Refuse("has shapes that are not known")
    after: list[object] = list(inferred) if inferred is not None else [None] * len(entries or ())
    zero = not step.whole("allowzero", 0)
    for axis, entry in enumerate(entries or ()):
        if after[axis] is not None and not isinstance(after[axis], str):
            continue
        if entry.value is not None and (entry.value > 0 or (entry.value == 0 and not zero)):
            after[axis] = entry.value
        elif entry.value == 0 and axis < len(before):
            after[axis] = before[axis]
        elif entry.dimension is not None:
            shape = step.shapes.shape(entry.dimension[0])
            after[axis] = None if shape is None else shape[entry.dimension[1]]
    result = _reshaped(step, after)
    if entries is None:
        raise Refuse("has a target shape that is computed")
    axis = result.axis + len(after)
    entry = entries[axis]
    if entry.value == -1:
        return
    if entry.value == 0 and zero and axis == step.front(carried) and np.array_equal(result.labels, carried.labels):
        return
    if entry.use is not None and entry.value == len(result.labels):
        whole = step.shapes.integers(entry.use)
        assert whole is not None
        step.count(entry.use, entry.position, whole, result.labels)
        return
    _adapts(step, entry.dimension, result)


def _adapts(step: Step, dimension: tuple[str, int] | None, result: Carried) -> None:
    """Refuse unless this size is that of an axis of neurons, so that it changes with them; those are the same then."""
    if dimension is not None:
        name, axis = dimension
        other, rank = step.carried_by(name), step.shapes.rank(name)
        along = other is not None and rank is not None and other.axis + rank == axis
        if along and other is not None and len(other.labels) == len(result.labels):
            step.unite(other.labels, result.labels)
            return
    raise Refuse("has the size of its neurons' axis computed")


def _reshaped(step: Step, after: Sequence[object]) -> Carried:
    carried, before = step.only(), step.shape(0)
    assert before is not None
    result = moved(before, step.front(carried), carried.labels, after, step.atoms, step.title)
    if isinstance(result, str):
        raise Refuse(result)
    axis, labels = result
    given = Carried(axis - len(after), labels)
    step.give(given)
    return given


def shape(step: Step) -> None:
    """Shape: what it gives may hold the number of neurons; see `sizes`."""
    carried, rank = step.only(), step.rank()
    if step.front(carried) in range(rank)[step.whole("start", 0) : step.whole("end", rank)]:
        step.give_sizes(carried.labels)


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
            raise Refuse(f"joins its neurons with another value: {step.graph.why_not_constant(step.name(slot))}")
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
        labels = carried.labels[start : start + whole[output]]
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
        labels = labels[start : max(start, stop)]
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


def expand(step: Step) -> None:
    """Expand: repeats along other axes."""
    carried = step.only()
    entries = step.shapes.entries(step.use(1))
    if entries is None:
        raise Refuse("has a target shape that is computed")
    if len(entries) >= -carried.axis:
        entry = entries[carried.axis]
        if entry.use is not None and entry.value == len(carried.labels) > 1:
            whole = step.shapes.integers(entry.use)
            assert whole is not None
            step.count(entry.use, entry.position, whole, carried.labels)
        elif entry.value != 1:
            _adapts(step, entry.dimension, carried)
    step.give(carried)


def tile(step: Step) -> None:
    """Tile along other axes."""
    carried, repeats = step.only(), step.integers(1)
    if repeats is None or repeats[step.front(carried)] != 1:
        raise Refuse("repeats its neurons")
    step.give(carried)


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


def pool(step: Step) -> None:
    """Pooling: spatial axes only."""
    carried = step.only()
    if step.front(carried) > 1:
        raise Refuse("mixes neurons")
    step.unread(range(1, len(step.node.output)))
    step.give(carried)


def resize(step: Step) -> None:
    """Resize and Upsample: must leave the neurons' axis as it is."""
    carried, rank = step.only(), step.rank()
    front = step.front(carried)
    axes = [axis % rank for axis in step.setting("axes", None) or range(rank)]  # type: ignore[attr-defined]
    if front not in axes:
        step.give(carried)
        return
    place = axes.index(front)
    if step.node.op_type == "Upsample":
        scales = step.setting("scales", None) if step.graph.opset < 9 else step.constant(1)
    else:
        scales = step.constant(1 if step.graph.opset < 11 else 2)
        if step.graph.opset > 10 and step.name(3):
            _sized(step, carried, place)
            return
    if scales is None or float(np.ravel(np.asarray(scales))[place]) != 1:
        raise Refuse("resizes the axis of its neurons, or by a factor that is computed")
    step.give(carried)


def _sized(step: Step, carried: Carried, place: int) -> None:
    """A Resize to given sizes."""
    entries = step.shapes.entries(step.use(3))
    if entries is None or place >= len(entries):
        raise Refuse("has sizes that are computed")
    entry = entries[place]
    if entry.use is not None and entry.value == len(carried.labels):
        whole = step.shapes.integers(entry.use)
        assert whole is not None
        step.count(entry.use, entry.position, whole, carried.labels)
    else:
        _adapts(step, entry.dimension, carried)
    step.give(carried)


def reduce(step: Step) -> None:
    """Reductions over other axes."""
    axes = _axes(step)
    computed = axes is None and len(step.node.input) > 1 and bool(step.name(1))
    if computed:
        raise Refuse("reduces axes that are computed")
    if axes is None and step.whole("noop_with_empty_axes", 0):
        axes = []
    _reduce(step, axes)


def reduce_one(step: Step) -> None:
    """ArgMax and ArgMin over another axis."""
    _reduce(step, [step.whole("axis", 0)])


def _reduce(step: Step, axes: list[int] | None) -> None:
    carried, rank = step.only(), step.rank()
    gone = range(rank) if axes is None else [axis % rank for axis in axes]
    front = step.front(carried)
    if front in gone:
        raise Refuse("mixes neurons")
    behind = 0 if step.whole("keepdims", 1) else sum(axis > front for axis in gone)
    step.give(Carried(carried.axis + behind, carried.labels))


def along(step: Step) -> None:
    """A running sum or product along another axis."""
    carried, axes = step.only(), step.integers(1)
    if axes is None or axes[0] % step.rank() == step.front(carried):
        raise Refuse("mixes neurons")
    step.give(carried)


def one_axis(step: Step) -> None:
    """An operator that mixes the axis that its attribute names."""
    carried = step.only()
    if step.whole("axis", -1) % step.rank() == step.front(carried):
        raise Refuse("mixes neurons")
    for output in range(len(step.node.output)):
        step.give(carried, output)


def _axes(step: Step) -> list[int] | None:
    """The axes of a Squeeze, Unsqueeze or reduction: an attribute or, in later opsets, an input."""
    if len(step.node.input) > 1 and step.name(1):
        return step.integers(1)
    given = step.setting("axes", None)
    return [int(axis) for axis in given] if isinstance(given, list) else None
