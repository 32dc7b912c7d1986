"""Entries of the operator table: operators that move, spread, gather or reduce entries without computing on them."""

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.index import Use
from onnxdpp.graph.reshaping import moved
from onnxdpp.graph.shapes import Entry


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
    carried, rank, axes = step.only(), step.rank(), _axes(step)
    if not axes:
        raise Refuse("names no axes, so that it would drop that of a single neuron")
    gone = [axis % rank for axis in axes]
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
    if zero and any(other.value == 0 and place == step.front(carried) != axis for place, other in enumerate(entries)):
        raise Refuse("copies the size of its neurons' axis")
    if entry.value == -1:
        return
    if entry.value == 0 and zero and axis == step.front(carried) and np.array_equal(result.labels, carried.labels):
        return
    _sized(step, entries, axis, result)


def _sized(step: Step, entries: Sequence[Entry], place: int, result: Carried) -> None:
    """Let one number of a target shape change with the neurons of `result`; refuses where it cannot."""
    entry = entries[place]
    if sum((other.use, other.position) == (entry.use, entry.position) for other in entries if other.use) > 1:
        raise Refuse("has one number for two axes of its target shape")
    if entry.use is not None and entry.value == len(result.labels):
        whole = step.shapes.integers(entry.use)
        assert whole is not None
        _alone(step, entry.use)
        step.count(entry.use, entry.position, whole, result.labels)
        return
    if entry.dimension is not None:
        # The size of an axis of neurons, so that it changes with them; those are the same then.
        name, axis = entry.dimension
        other, rank = step.carried_by(name), step.shapes.rank(name)
        along = other is not None and rank is not None and other.axis + rank == axis
        if along and other is not None and len(other.labels) == len(result.labels):
            step.unite(other.labels, result.labels)
            return
    raise Refuse("has the size of its neurons' axis computed")


def _alone(step: Step, use: Use) -> None:
    """Refuse where anybody else reads a target shape that the constant at `use` is a part of."""
    index = use.node
    while index != step.index:
        name = step.graph.nodes[index].output[0]
        readers = step.graph.uses.get(name, [])
        if len(readers) != 1 or name in step.graph.outputs or name in step.graph.captured:
            raise Refuse("has a target shape that others read too")
        index = readers[0].node


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


def expand(step: Step) -> None:
    """Expand: repeats along other axes."""
    carried = step.only()
    entries = step.shapes.entries(step.use(1))
    if entries is None:
        raise Refuse("has a target shape that is computed")
    if len(entries) >= -carried.axis:
        place = len(entries) + carried.axis
        if entries[place].value != 1:
            _sized(step, entries, place, carried)
    step.give(carried)


def tile(step: Step) -> None:
    """Tile along other axes."""
    carried, repeats = step.only(), step.integers(1)
    if repeats is None or repeats[step.front(carried)] != 1:
        raise Refuse("repeats its neurons")
    step.give(carried)


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
            _resized(step, carried, place)
            return
    if scales is None or float(np.ravel(np.asarray(scales))[place]) != 1:
        raise Refuse("resizes the axis of its neurons, or by a factor that is computed")
    step.give(carried)


def _resized(step: Step, carried: Carried, place: int) -> None:
    """A Resize to given sizes."""
    entries = step.shapes.entries(step.use(3))
    if entries is None or place >= len(entries):
        raise Refuse("has sizes that are computed")
    _sized(step, entries, place, carried)
    step.give(carried)


def reduce(step: Step) -> None:
    """Reductions over other axes."""
    axes = _axes(step)
    computed = axes is None and len(step.node.input) > 1 and bool(step.name(1))
    if computed:
        raise Refuse("reduces axes that are computed")
    if not axes:
        axes = [] if step.whole("noop_with_empty_axes", 0) else None
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
