"""What each operator does to the neuron axis: one small entry per operator.

A value carries neurons when entry i along one axis belongs to neuron i. The axis is counted from the end (-1, the
last, behind a Gemm or MatMul), so that broadcasting against operands of any rank leaves it alone.

An elementwise operator passes neurons on: entry i of its result depends on entry i of its operands only. Operands
broadcast against each other; further inputs (Clip's bounds, Dropout's ratio) are scalars that concern all neurons
alike. Everything that is not in the table mixes neurons, as far as we know, and is refused by name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onnx import NodeProto

from onnxdpp.graph.index import ONNX_DOMAINS, RANDOM, Graph


@dataclass(frozen=True)
class Elementwise:
    """Acts on each entry alone.

    Attributes
    ----------
    operands : int or None
        How many leading inputs broadcast against each other; None: all of them.
    unless : callable (graph, node) -> str or None
        The reason why this very node is not elementwise, if it is not.
    """

    operands: int | None = 1
    unless: Callable[[Graph, NodeProto], str | None] = lambda graph, node: None

    def operand_slots(self, node: NodeProto) -> range:
        """The inputs of `node` that broadcast against each other."""
        return range(len(node.input) if self.operands is None else min(self.operands, len(node.input)))


def _not_in_training(graph: Graph, node: NodeProto) -> str | None:
    if graph.trains(node):
        return "may drop at random (training mode)"
    if len(node.output) > 1 and node.output[1] and (node.output[1] in graph.uses or node.output[1] in graph.outputs):
        return "has its mask read"
    return None


UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""".split()

BROADCASTING = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
    Mod Mul Or Pow PRelu Sub Sum Where Xor
""".split()

# Named as what they are; any other operator that is not in the table is refused all the same.
MIXING = """
    ArgMax ArgMin CumProd CumSum DFT Einsum Gemm GlobalLpPool Hardmax LayerNormalization LogSoftmax LpNormalization
    MatMul MeanVarianceNormalization RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
""".split()

QUANTIZING = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")

OPERATORS: dict[str, Elementwise] = {
    **{name: Elementwise() for name in UNARY},
    **{name: Elementwise(operands=None) for name in BROADCASTING},
    "Dropout": Elementwise(unless=_not_in_training),
}


def elementwise(graph: Graph, node: NodeProto) -> Elementwise | str:
    """The table's entry for `node`, or the reason why it does not pass neurons on."""
    if (node.domain, node.op_type) in graph.functions:
        return "is a model-local function"
    if node.domain not in ONNX_DOMAINS:
        return f"is of the domain {node.domain!r}, which onnxdpp does not know"
    entry = OPERATORS.get(node.op_type)
    if node.op_type in QUANTIZING:
        return "quantizes: prune before you quantize"
    if node.op_type in RANDOM:
        return "draws at random"
    if entry is None:
        return "mixes neurons" if node.op_type in MIXING else "is not supported between dense layers yet"
    reason = entry.unless(graph, node)
    return entry if reason is None else reason


def constant_axis(shape: Iterable[int], axis: int, n: int) -> int | None:
    """Axis of a constant operand that runs along the neurons.

    Parameters
    ----------
    shape : iterable of int
        Shape of the constant.
    axis : int
        The neurons' axis in the other operand, counted from the end (negative).
    n : int
        Number of neurons there.

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
