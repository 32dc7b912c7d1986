"""What each operator does to the neuron axis: one small entry per operator.

A value carries neurons when entry i along one axis belongs to a neuron. An entry of the table is a function of a
`Step`: it says which outputs carry the neurons on, which constants and counts go with them, which neurons stay or go
together from here on; or it raises `Refuse`. Everything that is not in the table mixes neurons, as far as we know,
and is refused by name.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from onnxdpp.graph import joins, moves, norms
from onnxdpp.graph.atoms import Labels
from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.index import ONNX_DOMAINS, RANDOM

Entry: TypeAlias = Callable[[Step], None]


def elementwise(step: Step, operands: int | None = 1) -> None:
    """Entry i of the result depends on entry i of the operands only; they broadcast against each other.

    Parameters
    ----------
    operands : int or None
        How many leading inputs are operands; None: all. Others are parameters that concern all neurons alike.
    """
    count = len(step.node.input)
    slots = range(count if operands is None else min(operands, count))
    if any(slot not in slots for slot in step.carrying()):
        raise Refuse("takes its neurons as a parameter")
    carriers = [carried for slot in slots if (carried := step.carried(slot)) is not None]
    widest = max(carriers, key=lambda carried: len(carried.labels))
    axis, labels = widest.axis, widest.labels
    for other in carriers:
        if other.axis != axis:
            raise Refuse("joins neurons that lie along different axes")
        if len(other.labels) == len(labels):
            step.unite(labels, other.labels)
        elif len(other.labels) == 1:
            step.pin(other.labels, f"spreads it over {len(labels)} others")
        else:
            raise Refuse(f"broadcasts {len(labels)} neurons against {len(other.labels)} entries")
    for slot in slots:
        if step.name(slot) and step.carried(slot) is None:
            _beside(step, slot, axis, labels)
    step.give(Carried(axis, labels))


def _beside(step: Step, slot: int, axis: int, labels: Labels) -> None:
    """An operand that carries no neurons: a constant with an entry for each, or anything that serves all alike."""
    name = step.name(slot)
    reason = step.graph.why_not_constant(name)
    constant = step.graph.array(name) if reason is None else None
    if reason is None and constant is None:
        raise Refuse("reads a constant of a kind that onnxdpp does not know")
    shape = step.shapes.shape(name) if constant is None else constant.shape
    if shape is None or (constant is None and len(shape) >= -axis and shape[axis] != 1):
        raise Refuse(f"joins its neurons with another value: {reason}")
    try:
        own = constant_axis(shape, axis, len(labels))
    except ValueError as error:
        raise Refuse(str(error)) from None
    if own is not None:
        step.follow(slot, own, labels)


def constant_axis(shape: Iterable[object], axis: int, n: int) -> int | None:
    """Axis of a constant operand that runs along the neurons.

    Parameters
    ----------
    shape : iterable of int
        Shape of the constant.
    axis : int
        The neurons' axis in the other operand, counted from the end (negative).
    n : int
        Entries there.

    Returns
    -------
    int or None
        The constant's own axis, from the front; None where one entry serves all neurons.

    Raises
    ------
    ValueError
        If broadcasting would spread the neurons over more entries.
    """
    shape = tuple(shape)
    if len(shape) < -axis or shape[axis] == 1:
        return None
    if shape[axis] != n:
        raise ValueError(f"broadcasts {n} neurons against {shape[axis]} entries")
    return len(shape) + axis


def dropout(step: Step) -> None:
    """Elementwise, while it does not train."""
    if step.graph.trains(step.node):
        raise Refuse("may drop at random (training mode)")
    step.unread([1])
    elementwise(step)


def mixes(_: Step) -> None:
    """Refuses: every neuron has a say in every entry."""
    raise Refuse("mixes neurons")


def quantizes(_: Step) -> None:
    """Refuses: the scales were chosen for these very neurons."""
    raise Refuse("quantizes: prune before you quantize")


def attends(_: Step) -> None:
    """Refuses: heads, queries, keys and values are cut by rules of their own."""
    raise Refuse("is attention; heads and their dimensions are not pruned")


def cast_like(step: Step) -> None:
    """CastLike: of its second input, only the type matters."""
    carried = step.carried(0)
    if carried is not None:
        step.give(carried)


def recurs(_: Step) -> None:
    """Refuses: the gates of a recurrent layer share one weight."""
    raise Refuse("is recurrent: its gates share one weight")


UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""".split()

BROADCASTING = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
    Mod Mul Or Pow PRelu Sub Sum Where Xor
""".split()

REDUCING = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
""".split()

POOLING = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()

# Named as what they are; any other operator that is not in the table is refused all the same.
MIXING = "DFT DepthToSpace Det Einsum LRN MeanVarianceNormalization SpaceToDepth".split()

OPERATORS: dict[str, Entry] = {
    **dict.fromkeys(UNARY, elementwise),
    **dict.fromkeys(BROADCASTING, partial(elementwise, operands=None)),
    **dict.fromkeys(REDUCING, moves.reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), moves.reduce_one),
    **dict.fromkeys(POOLING, moves.pool),
    **dict.fromkeys(MIXING, mixes),
    **dict.fromkeys(("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"), quantizes),
    "Attention": attends,
    "BatchNormalization": norms.batch,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurs),
    "CastLike": cast_like,
    "Concat": joins.concat,
    "CumProd": moves.along,
    "CumSum": moves.along,
    "Dropout": dropout,
    "Expand": moves.expand,
    "Flatten": moves.flatten,
    "Gather": joins.gather,
    "GroupNormalization": norms.group,
    "Hardmax": norms.softmax,
    "InstanceNormalization": norms.instance,
    "LayerNormalization": norms.layer,
    "LogSoftmax": norms.softmax,
    "LpNormalization": moves.one_axis,
    "Pad": joins.pad,
    "RMSNormalization": norms.layer,
    "Reshape": moves.reshape,
    "Resize": moves.resize,
    "Shape": moves.shape,
    "Slice": joins.cut,
    "Softmax": norms.softmax,
    "Split": joins.split,
    "Squeeze": moves.squeeze,
    "Tile": moves.tile,
    "TopK": moves.one_axis,
    "Transpose": moves.transpose,
    "Unsqueeze": moves.unsqueeze,
    "Upsample": moves.resize,
}


def pass_on(step: Step) -> None:
    """Let a node that reads neurons and is no projection do what its entry says; raises `Refuse`."""
    node = step.node
    if (node.domain, node.op_type) in step.graph.functions:
        raise Refuse("is a model-local function")
    if node.domain not in ONNX_DOMAINS:
        raise Refuse(f"is of the domain {node.domain!r}, which onnxdpp does not know")
    if node.op_type in RANDOM:
        raise Refuse("draws at random")
    entry = OPERATORS.get(node.op_type)
    if entry is None:
        raise Refuse("is not supported")
    entry(step)
