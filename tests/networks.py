"""Random networks from the operator table, for Hypothesis or from plain seeds.

A `Value` is a tensor with neurons along one axis. A step makes new values of old ones: it knows shapes, and nothing of
labels. In a *tame* network every producer has neurons that can go, so that all must be found; in a *wild* one anything
may happen to them, and what is found must be sound all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st
from models import Array, graph_of, model, normal, run
from onnx import ModelProto, helper, numpy_helper
from oracles import dropped, gaps, half, shuffled, silenced

from onnxdpp.graph.layers import find_layers
from onnxdpp.graph.operators import REDUCING
from onnxdpp.graph.rewriting import Edits, apply, sliced

T = TypeVar("T")
LARGEST = 600  # entries of a value
WIDEST = 30  # along the neurons' axis
OPSETS = (11, 13, 18, 21)
TOLERANCE = 2e-4


class Dice(Protocol):
    """Where chance comes from."""

    def count(self, low: int, high: int) -> int: ...


@dataclass
class Drawn:
    """From Hypothesis, which can shrink it."""

    draw: st.DrawFn

    def count(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))


class Thrown:
    """From a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def count(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


@dataclass(frozen=True)
class Value:
    """A tensor with neurons along `axis`.

    `mixed`: some entries there belong to no neuron; `often`: some neurons may have several.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    mixed: bool = False
    often: bool = False

    @property
    def n(self) -> int:
        return self.shape[self.axis]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def last(self) -> bool:
        return self.axis == self.rank - 1

    @property
    def image(self) -> bool:
        return self.axis == 1 and self.rank in (3, 4)


@dataclass
class Network:
    """A network in the making."""

    dice: Dice
    wild: bool
    favour: str = ""
    opset: int = 17
    symbolic: bool = False
    x: tuple[int, ...] = ()
    lines: list[str] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    outputs: dict[str, int] = field(default_factory=dict)
    producers: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    tied: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    # Chance

    def pick(self, items: Sequence[T]) -> T:
        return items[self.dice.count(0, len(items) - 1)]

    def coin(self, percent: int = 50) -> bool:
        return self.dice.count(0, 99) >= 100 - percent

    # Text

    def emit(self, text: str, *inputs: Value) -> str:
        """A statement; `{out}` is the name of its value."""
        name = f"v{len(self.lines)}"
        self.lines.append(text.format(out=name))
        self.read.update(value.name for value in inputs)
        return name

    def number(self, values: Any, kind: type = np.int64) -> str:
        """A constant of known values; perhaps one that others read too."""
        array = np.asarray(values, kind)
        same = [
            name
            for name, other in self.weights.items()
            if name[0] == "k" and other.dtype == array.dtype and np.array_equal(other, array)
        ]
        if same and self.coin(40):
            return self.pick(same)
        name = f"k{len(self.weights)}"
        self.weights[name] = array
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        """A constant that is drawn, and where it stands."""
        name = f"w{len(self.weights)}"
        rng = np.random.default_rng([len(self.weights), self.dice.count(0, 3)])
        array = rng.standard_normal(shape) * (0.6 if len(shape) < 2 else 1.2 / np.sqrt(max(1, prod(shape[1:]))))
        array = np.abs(array) + 0.3 if positive else array
        array = array.astype(np.float32)
        way = self.dice.count(0, 19)
        if way == 19 and len(shape) > 1:
            order = list(range(len(shape)))[::-1]
            self.weights[f"{name}s"] = array.transpose(order)
            self.lines.append(f"{name} = Transpose <perm = {order}> ({name}s)")
        elif way == 18:
            self.weights[f"{name}s"] = array.astype(np.float16)
            self.lines.append(f"{name} = Cast <to = 1> ({name}s)")
        elif way == 17:
            self.weights[f"{name}s"] = array
            self.lines.append(f"{name} = Identity({name}s)")
        else:
            self.weights[name] = array
            if way == 16:
                self.constants.add(name)
        return name

    def with_axes(self, operator: str, value: Value, axes: Sequence[int], options: str = "") -> str:
        """An operator with axes, in an attribute or an input as the opset wants it."""
        change = 18 if operator.startswith("Reduce") and operator != "ReduceSum" else 13
        if self.opset < change:
            options = f"axes = {list(axes)}{', ' if options else ''}{options}"
            return self.emit(f"{{out}} = {operator} <{options}> ({value.name})", value)
        options = f"<{options}>" if options else ""
        return self.emit(f"{{out}} = {operator} {options} ({value.name}, {self.number(axes)})", value)

    def give(self, name: str, like: Value, **changes: Any) -> Value:
        """A new value."""
        value = Value(
            **{
                "name": name,
                "shape": like.shape,
                "axis": like.axis,
                "mixed": like.mixed,
                "often": like.often,
                **changes,
            }
        )
        self.values.append(value)
        return value

    def free(self, value: Value) -> list[int]:
        """The axes that a step may touch, but for that of the neurons."""
        return [axis for axis in range(int(self.symbolic), value.rank) if axis != value.axis]

    def any_axis(self, value: Value) -> int | None:
        """An axis that does not carry the neurons; in a wild network, any."""
        axes = self.free(value) + ([value.axis] if self.wild and self.coin(30) else [])
        return self.pick(axes) if axes else None

    def alike(self, value: Value) -> list[Value]:
        """Values of the same shape that may be joined with this one."""
        found = [other for other in self.values if other.shape == value.shape and other.axis == value.axis]
        if self.wild:
            return found
        return [value] + [other for other in found if not (value.mixed or other.mixed) and other is not value]

    def give_out(self, name: str, rank: int) -> None:
        self.outputs[name] = rank

    def model(self) -> ModelProto:
        lead = ["N"] if self.symbolic else []
        dims = ", ".join([*lead, *map(str, self.x[len(lead) :])])
        outputs = ", ".join(
            f"float[{', '.join(f'{name}_{axis}' for axis in range(rank))}] {name}"
            for name, rank in self.outputs.items()
        )
        initializers = {name: array for name, array in self.weights.items() if name not in self.constants}
        proto = model(
            f"g (float[{dims}] x) => ({outputs}) {{ {' '.join(self.lines)} }}", opset=self.opset, **initializers
        )
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        for name in sorted(self.constants):
            tensor = numpy_helper.from_array(self.weights[name])
            proto.graph.node.append(helper.make_node("Constant", [], [name], value=tensor))
        proto.graph.node.extend(nodes)
        return proto

    def show(self) -> str:
        shapes = {name: array.shape for name, array in self.weights.items()}
        return f"opset {self.opset}, x {self.x}{' symbolic' if self.symbolic else ''}\n" + "\n".join(
            [*self.lines, str(shapes), f"outputs {self.outputs}"]
        )


Made = Value | None

# Elementwise

SIMPLE = """
    Abs Asinh Atan Celu Cos Dropout Elu Erf HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu Shrink Sigmoid
    Sin Softplus Softsign Tanh ThresholdedRelu Gelu
""".split()
FIRST = {"Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20}
STEPPED = "Ceil Floor Round Sign".split()
BOUNDED = "Acos Asin Atanh Exp Log Reciprocal Sqrt Tan Cosh Sinh Acosh".split()
JOINS = "Add Sub Mul Max Min Mean Sum".split()
WITH_CONSTANT = "Add Sub Mul Div Max Min Mean Sum PRelu Pow Mod".split()
COMPARISONS = "Greater GreaterOrEqual Less LessOrEqual Equal And Or Xor Not Where IsNaN IsInf".split()
WHOLE = "BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Cast CastLike".split()


def between_bounds(net: Network, value: Value) -> str:
    """Something of a value between 0.05 and 0.95, however large it is."""
    small = net.emit(
        f"{{out}} = Mul({net.emit(f'{{out}} = Sigmoid({value.name})', value)}, {net.number(0.9, np.float32)})"
    )
    return net.emit(f"{{out}} = Add({small}, {net.number(0.05, np.float32)})")


def unary(net: Network, value: Value) -> Made:
    operator = net.pick([name for name in SIMPLE + STEPPED + BOUNDED if FIRST.get(name, 0) <= net.opset])
    operator = net.favour if net.favour in SIMPLE + STEPPED + BOUNDED and net.coin(80) else operator
    source = value.name
    if FIRST.get(operator, 0) > net.opset:
        return None
    if operator in STEPPED:
        source = net.emit(f"{{out}} = Mul({source}, {net.number(3, np.float32)})", value)
    if operator in BOUNDED:
        source = between_bounds(net, value)
    if operator == "Acosh":
        source = net.emit(f"{{out}} = Add({source}, {net.number(1.5, np.float32)})")
    return net.give(net.emit(f"{{out}} = {operator}({source})", value), value)


def beside(net: Network, value: Value) -> tuple[int, ...]:
    """The shape of a constant that goes with a value."""
    own = (value.n, *[1] * (value.rank - 1 - value.axis))
    full = (1 if net.symbolic else value.shape[0], *value.shape[1:])
    return net.pick([own, own, (1,) * (value.rank - len(own)) + own, full, full[1:], (), (1,)])


def constant(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in WITH_CONSTANT and net.coin(80) else net.pick(WITH_CONSTANT)
    other = net.weight(*beside(net, value), positive=operator in ("Div", "Mod", "Pow"))
    source = value.name
    if operator in ("Pow", "Mod"):
        source = between_bounds(net, value)
    pair = [source, other]
    if operator in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum") and net.coin():
        pair.reverse()
    options = "<fmod = 1>" if operator == "Mod" else ""
    return net.give(net.emit(f"{{out}} = {operator} {options} ({', '.join(pair)})", value), value)


def join(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in JOINS and net.coin(80) else net.pick(JOINS)
    other = net.pick(net.alike(value))
    # Products of products grow without bounds.
    left = net.emit(f"{{out}} = Tanh({value.name})", value) if operator == "Mul" else value.name
    pair = [left, other.name] if net.coin() else [other.name, left]
    name = net.emit(f"{{out}} = {operator}({', '.join(pair)})", value, other)
    return net.give(name, value, mixed=value.mixed or other.mixed, often=value.often or other.often)


def clip(net: Network, value: Value) -> Made:
    low, high = net.number(-0.5, np.float32), net.number(0.8, np.float32)
    return net.give(net.emit(f"{{out}} = Clip({value.name}, {low}, {net.pick([high, ''])})", value), value)


def compare(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in COMPARISONS and net.coin(80) else net.pick(COMPARISONS)
    if operator in ("GreaterOrEqual", "LessOrEqual") and net.opset < 12:
        return None
    other = net.weight(*beside(net, value))
    source = value.name
    if operator == "Equal":
        source = net.emit(f"{{out}} = Relu({source})", value)
        other = net.number(0, np.float32)
    match operator:
        case "And" | "Or" | "Xor":
            left = net.emit(f"{{out}} = Greater({source}, {net.number(0.1, np.float32)})", value)
            right = net.emit(f"{{out}} = Less({source}, {other})", value)
            truth = net.emit(f"{{out}} = {operator}({left}, {right})")
        case "Not":
            left = net.emit(f"{{out}} = Greater({source}, {net.number(0.1, np.float32)})", value)
            truth = net.emit(f"{{out}} = Not({left})")
        case "IsNaN":
            truth = net.emit(f"{{out}} = IsNaN({net.emit(f'{{out}} = Sqrt({source})', value)})")
        case "IsInf":
            positive = net.emit(f"{{out}} = Relu({source})", value)
            truth = net.emit(f"{{out}} = IsInf({net.emit(f'{{out}} = Log({positive})')})")
        case "Where":
            left = net.emit(f"{{out}} = Greater({source}, {net.number(0.1, np.float32)})", value)
            return net.give(net.emit(f"{{out}} = Where({left}, {source}, {other})", value), value)
        case _:
            truth = net.emit(f"{{out}} = {operator}({source}, {other})", value)
    # Truths alone would leave little of the values behind.
    kept = net.emit(f"{{out}} = Cast <to = 1> ({truth})")
    return net.give(net.emit(f"{{out}} = Add({kept}, {net.emit(f'{{out}} = Tanh({value.name})', value)})"), value)


def whole(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in WHOLE and net.coin(80) else net.pick(WHOLE)
    if (net.opset < 18 and operator.startswith("Bitwise")) or (net.opset < 15 and operator == "CastLike"):
        return None
    scaled = net.emit(f"{{out}} = Mul({value.name}, {net.number(7, np.float32)})", value)
    shape = (value.n, *[1] * (value.rank - 1 - value.axis))
    amounts = np.arange(1, value.n + 1).reshape(shape) % 5
    match operator:
        case "Cast":
            result = net.emit(f"{{out}} = Cast <to = 7> ({scaled})")
        case "CastLike":
            result = net.emit(f"{{out}} = CastLike({scaled}, {net.number(0, np.int32)})")
        case "BitwiseNot":
            result = net.emit(f"{{out}} = BitwiseNot({net.emit(f'{{out}} = Cast <to = 6> ({scaled})')})")
        case "BitShift":
            square = net.emit(f"{{out}} = Abs({scaled})")
            integers = net.emit(f"{{out}} = Cast <to = 12> ({square})")
            by = net.number(amounts, np.uint32)
            result = net.emit(f"""{{out}} = BitShift <direction = "LEFT"> ({integers}, {by})""")
        case _:
            integers = net.emit(f"{{out}} = Cast <to = 6> ({scaled})")
            result = net.emit(f"{{out}} = {operator}({integers}, {net.number(amounts, np.int32)})")
    back = net.emit(f"{{out}} = Cast <to = 1> ({result})")
    return net.give(net.emit(f"{{out}} = Mul({back}, {net.number(0.1, np.float32)})"), value)


# Normalizations and pooling


def batch_norm(net: Network, value: Value) -> Made:
    if value.axis == 0 or (net.symbolic and value.rank < 2):
        return None
    n = value.shape[1]
    others = ", ".join([*(net.weight(n) for _ in range(3)), net.weight(n, positive=True)])
    return net.give(net.emit(f"{{out}} = BatchNormalization({value.name}, {others})", value), value)


def instance_norm(net: Network, value: Value) -> Made:
    if value.rank < 3 or (value.axis > 1 and not net.wild) or prod(value.shape[2:]) < 2:
        return None
    n = value.shape[1]
    return net.give(
        net.emit(f"{{out}} = InstanceNormalization({value.name}, {net.weight(n)}, {net.weight(n)})", value), value
    )


def group_norm(net: Network, value: Value) -> Made:
    groups = [size for size in range(2, value.shape[1]) if value.shape[1] % size == 0]
    if (
        value.rank < 3
        or not groups
        or (not net.wild and (value.axis != 1 or value.mixed or value.often))
        or prod(value.shape[2:]) < 2
    ):
        return None
    number, n = net.pick(groups), value.shape[1]
    if net.opset >= 21 and (net.coin() or net.favour == "GroupNormalization"):
        scale = f"{net.weight(n)}, {net.weight(n)}"
        return net.give(
            net.emit(f"{{out}} = GroupNormalization <num_groups = {number}> ({value.name}, {scale})", value), value
        )
    apart = net.emit(f"{{out}} = Reshape({value.name}, {net.number([0, number, -1])})", value)
    ones, zeros = net.number([1] * number, np.float32), net.number([0] * number, np.float32)
    normal = net.emit(f"{{out}} = InstanceNormalization({apart}, {ones}, {zeros})")
    back = net.number([0, *value.shape[1:]])
    if net.coin():
        back = net.emit(f"{{out}} = Shape({value.name})", value)
    return net.give(net.emit(f"{{out}} = Reshape({normal}, {back})"), value)


def pool(net: Network, value: Value) -> Made:
    if value.rank not in (3, 4) or (value.axis > 1 and not net.wild):
        return None
    names = "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split()
    operator = net.favour if net.favour in names and net.coin(80) else net.pick(names)
    across = value.axis > 1
    if operator.startswith("Global"):
        name = net.emit(f"{{out}} = {operator}({value.name})", value)
        if across:
            return net.give(net.emit(f"{{out}} = Sub({value.name}, {name})", value), value)
        return net.give(name, value, shape=(*value.shape[:2], *[1] * (value.rank - 2)))
    if across:  # of the same size, so that who takes it for neurons is not stopped by that
        axes = value.rank - 2
        options = f"kernel_shape = {[3] * axes}, pads = {[1] * 2 * axes}"
        return net.give(net.emit(f"{{out}} = {operator} <{options}> ({value.name})", value), value)
    kernel = [net.dice.count(1, min(3, size)) for size in value.shape[2:]]
    strides = [net.dice.count(1, 2) for _ in kernel]
    name = net.emit(f"{{out}} = {operator} <kernel_shape = {kernel}, strides = {strides}> ({value.name})", value)
    spatial = [(size - k) // s + 1 for size, k, s in zip(value.shape[2:], kernel, strides, strict=True)]
    return net.give(name, value, shape=(*value.shape[:2], *spatial))


# Along one axis


def reduce(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in REDUCING and net.coin(80) else net.pick(REDUCING)
    axis = net.any_axis(value)
    if axis is None or (value.rank < 3 and axis != value.axis):
        return None
    source = value
    if operator in ("ReduceLogSum", "ReduceProd"):
        source = Value(between_bounds(net, value), value.shape, value.axis)
    keep = net.coin() or axis == value.axis
    shown = axis - value.rank if net.coin() else axis
    name = net.with_axes(operator, source, [shown], f"keepdims = {int(keep)}")
    shape = list(value.shape)
    if keep:
        shape[axis] = 1
    else:
        del shape[axis]
    if axis == value.axis:
        return net.give(net.emit(f"{{out}} = Sub({value.name}, {name})", value), value)
    return net.give(name, value, shape=tuple(shape), axis=value.axis - (not keep and axis < value.axis))


def along(net: Network, value: Value) -> Made:
    names = ["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "TopK", "LayerNormalization"]
    operator = net.favour if net.favour in names and net.coin(80) else net.pick(names)
    axis = net.any_axis(value)
    if axis is None:
        return None
    old = net.opset < 13 and operator in ("Softmax", "LogSoftmax", "Hardmax")
    if (old or operator == "LayerNormalization") and axis < value.axis and not net.wild:
        return None
    if operator == "LayerNormalization" and (net.opset < 17 or axis == 0 or value.shape[axis] < 2):
        return None
    shown = axis - value.rank if net.coin() else axis
    match operator:
        case "CumSum":
            name = net.emit(f"{{out}} = CumSum({value.name}, {net.number(shown)})", value)
        case "TopK":
            name = net.emit(
                f"{{out}}, {{out}}i = TopK <axis = {shown}> ({value.name}, {net.number([value.shape[axis]])})", value
            )
        case "LayerNormalization":
            scale = net.weight(*value.shape[axis:])
            name = net.emit(f"{{out}} = LayerNormalization <axis = {shown}> ({value.name}, {scale})", value)
        case _:
            name = net.emit(f"{{out}} = {operator} <axis = {shown}> ({value.name})", value)
    return net.give(name, value)


def arg(net: Network, value: Value) -> Made:
    operator = net.favour if net.favour in ("ArgMax", "ArgMin") else net.pick(["ArgMax", "ArgMin"])
    axis = net.any_axis(value)
    if axis is None or value.shape[axis] < 2:
        return None
    index = net.emit(f"{{out}} = {operator} <axis = {axis}> ({value.name})", value)
    number = net.emit(f"{{out}} = Cast <to = 1> ({index})")
    if axis == value.axis:
        return net.give(net.emit(f"{{out}} = Mul({number}, {value.name})"), value)
    shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
    return net.give(number, value, shape=shape)


def gather(net: Network, value: Value) -> Made:
    axis = net.any_axis(value)
    if axis is None:
        return None
    size = value.shape[axis]
    if net.coin(30) and value.rank > 2 and axis != value.axis:
        name = net.emit(
            f"{{out}} = Gather <axis = {axis}> ({value.name}, {net.number(net.dice.count(0, size - 1))})", value
        )
        return net.give(
            name, value, shape=(*value.shape[:axis], *value.shape[axis + 1 :]), axis=value.axis - (axis < value.axis)
        )
    places = [net.dice.count(0, size - 1) for _ in range(net.dice.count(1, 3))]
    name = net.emit(f"{{out}} = Gather <axis = {axis}> ({value.name}, {net.number(places)})", value)
    shape = (*value.shape[:axis], len(places), *value.shape[axis + 1 :])
    return net.give(name, value, shape=shape)


# Moves


def transpose(net: Network, value: Value) -> Made:
    order, rest = ([0], list(range(1, value.rank))) if net.symbolic else ([], list(range(value.rank)))
    while rest:
        order.append(rest.pop(net.dice.count(0, len(rest) - 1)))
    name = net.emit(f"{{out}} = Transpose <perm = {order}> ({value.name})", value)
    return net.give(name, value, shape=tuple(value.shape[axis] for axis in order), axis=order.index(value.axis))


def unsqueeze(net: Network, value: Value) -> Made:
    if value.rank > 3:
        return None
    place = net.dice.count(int(net.symbolic), value.rank)
    shown = place - value.rank - 1 if net.coin() else place
    name = net.with_axes("Unsqueeze", value, [shown])
    shape = (*value.shape[:place], 1, *value.shape[place:])
    return net.give(name, value, shape=shape, axis=value.axis + (place <= value.axis))


def squeeze(net: Network, value: Value) -> Made:
    ones = [axis for axis in net.free(value) if value.shape[axis] == 1]
    if not ones or value.rank < 3:
        return None
    axis = net.pick(ones)
    name = net.with_axes("Squeeze", value, [axis])
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    return net.give(name, value, shape=shape, axis=value.axis - (axis < value.axis))


def target(net: Network, value: Value, after: Sequence[int], axis: int) -> str:
    """A target shape: sizes, with a -1, or computed from the shape of the value."""
    sizes = list(after)
    if net.symbolic:
        sizes[0] = 0
    way = net.dice.count(0, 3)
    if way == 0 or (net.symbolic and way == 1):
        place = net.pick(range(int(net.symbolic), len(sizes)))
        sizes[place] = -1
    elif way == 1:
        sizes[0] = 0 if after[0] == value.shape[0] and (axis, value.axis) != (0, 0) else sizes[0]
    elif way == 2 and after[0] == value.shape[0] and axis and value.axis:
        shape = net.emit(f"{{out}} = Shape({value.name})", value)
        first = net.emit(f"{{out}} = Gather({shape}, {net.number([0])})")
        return net.emit(f"{{out}} = Concat <axis = 0> ({first}, {net.number(sizes[1:])})")
    return net.number(sizes)


def merge(net: Network, value: Value) -> Made:
    places = [place for place in range(int(net.symbolic), value.rank - 1) if value.rank > 2]
    if not places:
        return None
    place = net.pick(places)
    size = value.shape[place] * value.shape[place + 1]
    inside = value.axis in (place, place + 1)
    if inside and size > WIDEST:
        return None
    after = (*value.shape[:place], size, *value.shape[place + 2 :])
    axis = place if inside else value.axis - (value.axis > place)
    name = net.emit(f"{{out}} = Reshape({value.name}, {target(net, value, after, axis)})", value)
    return net.give(name, value, shape=after, axis=axis, often=value.often or inside)


def divide(net: Network, value: Value) -> Made:
    axes = [
        axis
        for axis in range(int(net.symbolic), value.rank)
        if value.shape[axis] in (4, 6, 8, 9, 10, 12)
        and (axis != value.axis or net.wild or not (value.mixed or value.often))
    ]
    if not axes or value.rank > 3:
        return None
    place = net.pick(axes)
    size = value.shape[place]
    outer = net.pick([part for part in (2, 3, 4, 5, 6) if size % part == 0 and part < size])
    after = (*value.shape[:place], outer, size // outer, *value.shape[place + 1 :])
    axis = value.axis + (value.axis > place)
    name = net.emit(f"{{out}} = Reshape({value.name}, {target(net, value, after, axis)})", value)
    return net.give(name, value, shape=after, axis=axis)


def flatten(net: Network, value: Value) -> Made:
    size = prod(value.shape[1:])
    if value.axis == 0 or value.rank < 3 or size > WIDEST:
        return None
    place = 1 - value.rank if net.coin(30) else 1
    name = net.emit(f"{{out}} = Flatten <axis = {place}> ({value.name})", value)
    return net.give(name, value, shape=(value.shape[0], size), axis=1, often=True)


def concat(net: Network, value: Value) -> Made:
    """Side by side along the neurons' axis."""

    def fits(other: tuple[int, ...]) -> bool:
        axis = value.axis
        return len(other) == value.rank and (*other[:axis], *other[axis + 1 :]) == (
            *value.shape[:axis],
            *value.shape[axis + 1 :],
        )

    others = [other for other in net.values if other.axis == value.axis and fits(other.shape)]
    parts = [value, net.pick(others)] + [net.pick(others)] * net.coin(30)
    names, mixed = [part.name for part in parts], any(part.mixed for part in parts)
    sizes = [part.n for part in parts]
    if net.coin(30) and fits(net.x) and net.x:
        names.append("x")
        sizes.append(net.x[value.axis])
        mixed = True
    elif net.coin(20) and not net.symbolic:
        extra = net.dice.count(1, 3)
        names.append(net.weight(*value.shape[: value.axis], extra, *value.shape[value.axis + 1 :]))
        sizes.append(extra)
        mixed = True
    if sum(sizes) > WIDEST:
        return None
    if net.coin():
        names.reverse()
    axis = value.axis - value.rank if net.coin() else value.axis
    name = net.emit(f"{{out}} = Concat <axis = {axis}> ({', '.join(names)})", *parts)
    shape = (*value.shape[: value.axis], sum(sizes), *value.shape[value.axis + 1 :])
    return net.give(name, value, shape=shape, mixed=mixed, often=True)


def stack(net: Network, value: Value) -> Made:
    """One behind the other along another axis: all stay or go together."""
    axes = net.free(value)
    if not axes:
        return None
    axis, other = net.pick(axes), net.pick(net.alike(value))
    name = net.emit(f"{{out}} = Concat <axis = {axis}> ({value.name}, {other.name})", value, other)
    shape = (*value.shape[:axis], 2 * value.shape[axis], *value.shape[axis + 1 :])
    return net.give(name, value, shape=shape, mixed=value.mixed or other.mixed, often=value.often or other.often)


def split(net: Network, value: Value) -> Made:
    inner = net.coin(25) and net.free(value)
    axis = net.pick(net.free(value)) if inner else value.axis
    size = value.shape[axis]
    if size < 2:
        return None
    gate = size % 2 == 0 and net.coin() and (axis != value.axis or net.wild or not value.mixed)
    # One neuron alone may be lost in a Reshape, where no axis is left for it.
    least = 2 if axis == value.axis and not net.wild else 1
    if size < 2 * least or (least == 2 and value.mixed):
        return None
    first = size // 2 if gate else net.dice.count(least, size - least)
    sizes = [first, size - first]
    equal = sizes[0] == sizes[1]
    if net.opset >= 18 and equal and net.coin():
        text, given = f"<axis = {axis}, num_outputs = 2>", ""
    elif net.opset < 18 and equal and net.coin():
        text, given = f"<axis = {axis}>", ""
    elif net.opset < 13:
        text, given = f"<axis = {axis}, split = {sizes}>", ""
    else:
        text, given = f"<axis = {axis}>", f", {net.number(sizes)}"
    one = net.emit(f"{{out}}, {{out}}b = Split {text} ({value.name}{given})", value)
    other = f"{one}b"

    def shape(part: int) -> tuple[int, ...]:
        return (*value.shape[:axis], part, *value.shape[axis + 1 :])

    if gate:
        gated = net.emit(f"{{out}} = Mul({net.emit(f'{{out}} = Sigmoid({one})')}, {other})")
        return net.give(gated, value, shape=shape(sizes[0]))
    if net.coin():
        turned = net.emit(f"{{out}} = Concat <axis = {axis}> ({other}, {net.emit(f'{{out}} = Tanh({one})')})")
        return net.give(turned, value)
    if axis == value.axis and not net.wild:  # both, so that no neuron is lost on the way
        net.give(other, value, shape=shape(sizes[1]))
    return net.give(one, value, shape=shape(sizes[0]))


def cut(net: Network, value: Value) -> Made:
    axis = value.axis if net.coin(70) else net.any_axis(value)
    if axis is None or value.shape[axis] < 2:
        return None
    size = value.shape[axis]
    least = 2 if axis == value.axis and not net.wild else 1
    if least == 2 and value.mixed:
        return None
    start = net.dice.count(0, size - 2)
    stop = net.dice.count(start + least, size)
    bounds = [start - size if net.coin(30) else start], [net.pick([stop, stop, stop - size if stop < size else 10**6])]
    step = net.pick([1, 2, -1]) if net.wild and net.coin(20) else 1
    if step == -1:
        bounds = [size - 1], [-(10**6)]
        start, stop = 0, size
    slots = [net.number(bounds[0]), net.number(bounds[1]), net.number([axis]), net.number([step])]
    name = net.emit(f"{{out}} = Slice({value.name}, {', '.join(slots)})", value)
    count = -(-(stop - start) // abs(step))
    return net.give(name, value, shape=(*value.shape[:axis], count, *value.shape[axis + 1 :]))


def pad(net: Network, value: Value) -> Made:
    axis = value.axis if net.coin(60) else net.any_axis(value)
    if axis is None:
        return None
    before, behind = net.dice.count(0, 2), net.dice.count(0, 2)
    size = value.shape[axis] + before + behind
    if axis == value.axis and size > WIDEST:
        return None
    pads = [0] * (2 * value.rank)
    pads[axis], pads[axis + value.rank] = before, behind
    mode = "constant"
    if value.rank > 2 and axis > 1 and (axis != value.axis or net.wild) and max(before, behind) < value.shape[axis]:
        mode = net.pick(["constant", "reflect", "edge"])
    if net.opset >= 18 and net.coin():
        slots = f"{net.number([before, behind])}, , {net.number([axis])}"
    else:
        slots = f"{net.number(pads)}, {net.number(0.3, np.float32)}"
    name = net.emit(f"""{{out}} = Pad <mode = "{mode}"> ({value.name}, {slots})""", value)
    mixed = value.mixed or (axis == value.axis and bool(before or behind))
    return net.give(name, value, shape=(*value.shape[:axis], size, *value.shape[axis + 1 :]), mixed=mixed)


def spread(net: Network, value: Value) -> Made:
    kinds = ["Tile", "Expand", "Resize"]
    kind = net.favour if net.favour in kinds else net.pick(kinds)
    axes = [axis for axis in net.free(value) if kind != "Expand" or value.shape[axis] == 1]
    if kind == "Resize":
        axes = [axis for axis in axes if axis > 1]
    if not axes or (kind == "Resize" and value.rank not in (3, 4)):
        return None
    axis = net.pick(axes)
    times = [1] * value.rank
    times[axis] = 2
    after = tuple(size * by for size, by in zip(value.shape, times, strict=True))
    match kind:
        case "Tile":
            name = net.emit(f"{{out}} = Tile({value.name}, {net.number(times)})", value)
        case "Expand":
            to = [1 if net.symbolic and place == 0 else size for place, size in enumerate(after)]
            to = net.pick([to, [size if place == axis else 1 for place, size in enumerate(after)]])
            name = net.emit(f"{{out}} = Expand({value.name}, {net.number(to)})", value)
        case _:
            roi = net.number([], np.float32)
            name = net.emit(f"{{out}} = Resize({value.name}, {roi}, {net.number(times, np.float32)})", value)
    return net.give(name, value, shape=after)


def across(net: Network, value: Value) -> Made:
    """A MatMul that mixes another axis than that of the neurons."""
    if value.last or value.rank < 3 or value.axis == 0:
        return None
    size = net.dice.count(1, 4)
    name = net.emit(f"{{out}} = MatMul({value.name}, {net.weight(value.shape[-1], size)})", value)
    return net.give(name, value, shape=(*value.shape[:-1], size))


# Projections


def title(net: Network, hidden: bool) -> str:
    if not hidden:
        return ""
    net.producers.append(f"p{len(net.producers)}")
    return f"[{net.producers[-1]}] "


def kernel(net: Network, *shape: int) -> str:
    """A weight; in a wild network, perhaps one that another projection has too."""
    same = [name for name, size in net.tied if size == shape]
    if net.wild and same and net.coin(15):
        return net.pick(same)
    name = net.weight(*shape)
    net.tied.append((name, shape))
    return name


def dense(net: Network, value: Value, m: int, hidden: bool = True) -> Value:
    """A Gemm or MatMul, with or without a bias."""
    n, source = value.n, value.name
    forms = ["MatMul", "MatMul+Add", "Add+MatMul", "MatMul+Sub"]
    forms += ["Gemm", "Gemm+bias", "Gemm transB", "Gemm alpha", "Gemm beta"] if value.rank == 2 else []
    form = net.pick(forms)
    name, shape = title(net, hidden), (*value.shape[:-1], m)
    weight = kernel(net, *((m, n) if form == "Gemm transB" else (n, m)))
    if form.startswith("Gemm"):
        options = {"Gemm transB": "<transB = 1>", "Gemm alpha": "<alpha = -0.5>", "Gemm beta": "<beta = 0.5>"}
        bias = f", {net.weight(*net.pick([(m,), (1, m), (1,)]))}" if form in ("Gemm+bias", "Gemm beta") else ""
        out = net.emit(f"{name}{{out}} = Gemm {options.get(form, '')} ({source}, {weight}{bias})", value)
        return net.give(out, value, shape=shape, mixed=False, often=False)
    out = net.emit(f"{name}{{out}} = MatMul({source}, {weight})", value)
    match form:
        case "MatMul+Add":
            out = net.emit(f"{{out}} = Add({out}, {net.weight(m)})")
        case "Add+MatMul":
            out = net.emit(f"{{out}} = Add({net.weight(1, m)}, {out})")
        case "MatMul+Sub":
            out = net.emit(f"{{out}} = Sub({net.weight(m)}, {out})")
    return net.give(out, value, shape=shape, mixed=False, often=False)


def convolution(net: Network, value: Value, m: int, hidden: bool = True, same: bool = False) -> Value:
    """A Conv or ConvTranspose; `same`: of the same spatial size."""
    n, spatial = value.n, value.shape[2:]
    operator = "ConvTranspose" if net.coin(25) and not same else "Conv"
    common = [size for size in (1, 2, 3) if n % size == 0 and m % size == 0 and size < max(2, n)]
    groups = net.pick(common) if hidden and (net.wild or not value.mixed) else 1
    sizes = [1 if same else net.dice.count(1, min(3, size)) for size in spatial]
    strides = [1 if same else net.dice.count(1, 2) for _ in spatial]
    pads = [net.dice.count(0, 1) if size > 1 else 0 for size in sizes]
    shape = (m, n // groups) if operator == "Conv" else (n, m // groups)
    options = f"group = {groups}, strides = {strides}"
    if operator == "Conv":
        options += f", pads = {pads + pads}"
        after = [(size + 2 * p - k) // s + 1 for size, p, k, s in zip(spatial, pads, sizes, strides, strict=True)]
    else:
        after = [(size - 1) * s + k for size, k, s in zip(spatial, sizes, strides, strict=True)]
    bias = f", {net.weight(m)}" if net.coin() else ""
    text = f"{title(net, hidden)}{{out}} = {operator} <{options}> ({value.name}, {kernel(net, *shape, *sizes)}{bias})"
    return net.give(net.emit(text, value), value, shape=(*value.shape[:1], m, *after), mixed=False, often=groups > 1)


def project(net: Network, value: Value) -> Made:
    m = net.dice.count(2, 8)
    if value.image and (not value.last or net.coin()):
        return convolution(net, value, m)
    return dense(net, value, m) if value.last else None


def residual(net: Network, value: Value) -> Made:
    """What a projection of the value gives is added to it."""
    if value.mixed and not net.wild:
        return None
    if value.image:
        other = convolution(net, value, value.n, same=True)
    elif value.last:
        other = dense(net, value, value.n)
    else:
        return None
    inner = net.emit(f"{{out}} = Tanh({other.name})", other)
    return net.give(net.emit(f"{{out}} = Add({inner}, {value.name})", value), value, often=value.often or other.often)


def excite(net: Network, value: Value) -> Made:
    """A gate for each channel, computed from all of them."""
    if not value.image or (value.mixed and not net.wild):
        return None
    mean = net.give(
        net.emit(f"{{out}} = GlobalAveragePool({value.name})", value),
        value,
        shape=(*value.shape[:2], *[1] * (value.rank - 2)),
    )
    net.read.add(mean.name)
    down = convolution(net, mean, net.dice.count(2, 4), same=True)
    up = convolution(net, net.give(net.emit(f"{{out}} = Relu({down.name})", down), down), value.n, same=True)
    gate = net.emit(f"{{out}} = Sigmoid({up.name})", up)
    net.read.update(item.name for item in net.values[-4:])
    return net.give(net.emit(f"{{out}} = Mul({value.name}, {gate})", value), value, often=value.often or up.often)


def depthwise(net: Network, value: Value) -> Made:
    if not value.image or value.n < 2:
        return None
    times = net.dice.count(1, 2)
    if value.n * times > WIDEST or (value.mixed and not net.wild):
        return None
    operator = net.pick(["Conv", "ConvTranspose"])
    sizes = [net.dice.count(1, min(2, size)) for size in value.shape[2:]]
    shape = (value.n * times, 1) if operator == "Conv" else (value.n, times)
    bias = f", {net.weight(value.n * times)}" if net.coin() else ""
    name = net.emit(
        f"{{out}} = {operator} <group = {value.n}> ({value.name}, {net.weight(*shape, *sizes)}{bias})", value
    )
    change = -1 if operator == "Conv" else 1
    after = [size + change * (k - 1) for size, k in zip(value.shape[2:], sizes, strict=True)]
    return net.give(name, value, shape=(value.shape[0], value.n * times, *after), often=True)


# What only a wild network does


def give_out(net: Network, value: Value) -> Made:
    net.give_out(net.emit(f"{{out}} = Identity({value.name})", value), value.rank)
    return value


def with_input(net: Network, value: Value) -> Made:
    if value.shape != net.x:
        return None
    return net.give(net.emit(f"{{out}} = {net.pick(['Add', 'Mul'])}({value.name}, x)", value), value, mixed=True)


def by_its_size(net: Network, value: Value) -> Made:
    """Arithmetic on what Shape says."""
    shape = net.emit(f"{{out}} = Shape({value.name})", value)
    place = net.emit(f"{{out}} = Gather({shape}, {net.number(net.dice.count(0, value.rank - 1))})")
    number = net.emit(f"{{out}} = Cast <to = 1> ({place})")
    return net.give(net.emit(f"{{out}} = Div({value.name}, {number})"), value)


def mixing(net: Network, value: Value) -> Made:
    """Operators that the table refuses."""
    kinds = [
        "LRN",
        "Einsum",
        "MeanVarianceNormalization",
        "DepthToSpace",
        "SpaceToDepth",
        "Det",
        "QuantizeLinear",
        "Softmax",
        "Cols",
    ]
    match net.favour if net.favour in kinds else net.pick(kinds):
        case "LRN" if value.rank == 4:
            return net.give(net.emit(f"{{out}} = LRN <size = 3, alpha = 0.5> ({value.name})", value), value)
        case "MeanVarianceNormalization" if value.rank == 4:
            if net.opset >= 13:
                return None  # its own inference fails
            return net.give(net.emit(f"{{out}} = MeanVarianceNormalization({value.name})", value), value)
        case "Einsum" if value.rank == 2 and net.opset >= 12:
            weight = net.weight(value.shape[1], value.shape[1])
            text = f"""{{out}} = Einsum <equation = "ij,jk->ik"> ({value.name}, {weight})"""
            return net.give(net.emit(text, value), value)
        case "QuantizeLinear" if not net.symbolic:
            scale, zero = net.number(0.05, np.float32), net.number(100, np.uint8)
            small = net.emit(f"{{out}} = QuantizeLinear({value.name}, {scale}, {zero})", value)
            return net.give(net.emit(f"{{out}} = DequantizeLinear({small}, {scale}, {zero})"), value)
        case "DepthToSpace" if value.rank == 4 and value.shape[1] % 4 == 0:
            n, c, *spatial = value.shape
            name = net.emit(f"{{out}} = DepthToSpace <blocksize = 2> ({value.name})", value)
            return net.give(name, value, shape=(n, c // 4, *[2 * size for size in spatial]))
        case "Softmax" if value.axis:
            return net.give(net.emit(f"{{out}} = Softmax <axis = {value.axis}> ({value.name})", value), value)
        case "Cols" if value.rank == 2 and value.axis == 1:
            total = net.with_axes("ReduceMax", value, [1], "keepdims = 1")
            return net.give(net.emit(f"{{out}} = Sub({value.name}, {total})", value), value)
    return None


Make = Callable[[Network, Value], Made]


def rearrange(net: Network, value: Value) -> Made:
    return net.pick([merge, divide])(net, value)


def put_together(net: Network, value: Value) -> Made:
    return net.pick([concat, stack])(net, value)


STEPS: dict[Make, int] = {
    unary: 4, constant: 4, join: 5, clip: 1, compare: 1, whole: 1, batch_norm: 2, instance_norm: 1, group_norm: 2,
    pool: 2, reduce: 2, along: 2, arg: 1, gather: 1, transpose: 3, unsqueeze: 1, squeeze: 2, merge: 2, divide: 2,
    flatten: 2, concat: 3, stack: 1, split: 3, cut: 2, pad: 2, spread: 1, across: 1, project: 4, residual: 2, excite: 1,
    depthwise: 2,
}  # fmt: skip
WILD: dict[Make, int] = {give_out: 1, with_input: 1, by_its_size: 1, mixing: 3}

MAKES: dict[str, Make] = {
    **dict.fromkeys([*SIMPLE, *STEPPED, *BOUNDED], unary),
    **dict.fromkeys(WITH_CONSTANT, constant),
    **dict.fromkeys(JOINS, join),
    **dict.fromkeys(COMPARISONS, compare),
    **dict.fromkeys(WHOLE, whole),
    **dict.fromkeys("AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split(), pool),
    **dict.fromkeys("Softmax LogSoftmax Hardmax LpNormalization CumSum TopK LayerNormalization".split(), along),
    **dict.fromkeys(["Tile", "Expand", "Resize"], spread),
    **dict.fromkeys(["ArgMax", "ArgMin"], arg),
    **dict.fromkeys(REDUCING, reduce),
    "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "Clip": clip, "Gather": gather, "Transpose": transpose, "Unsqueeze": unsqueeze, "Squeeze": squeeze,
    "Reshape": rearrange, "Flatten": flatten, "Concat": put_together, "Split": split, "Slice": cut, "Pad": pad,
    **dict.fromkeys(["LRN", "Einsum", "DepthToSpace", "MeanVarianceNormalization"], mixing),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear"], mixing),
    "Shape": by_its_size,
}  # fmt: skip
"""The step that makes each operator that may be favoured."""


def finish(net: Network, value: Value) -> None:
    """A head upon a value: its output is the graph's."""
    if not value.last and not value.image:
        if net.symbolic and value.axis == 0:
            return
        order = [axis for axis in range(value.rank) if axis != value.axis] + [value.axis]
        name = net.emit(f"{{out}} = Transpose <perm = {order}> ({value.name})", value)
        value = Value(name, tuple(value.shape[axis] for axis in order), value.rank - 1, value.mixed)
    head = dense(net, value, 3, hidden=False) if value.last else convolution(net, value, 2, hidden=False)
    net.values.pop()
    net.give_out(net.emit(f"{{out}} = Identity({head.name})", head), head.rank)


def network(dice: Dice, *, wild: bool, favour: str = "") -> Network:
    """A random network; with `favour`, often with this operator."""
    net = Network(dice, wild, favour)
    net.opset = net.pick(OPSETS)
    net.symbolic = net.coin(30)
    net.x, axis = net.pick(
        [
            ((3, 4), 1),
            ((2, 3, 4), 2),
            ((2, 3, 5, 4), 1),
            ((2, 3, 6), 1),
            ((2, 4, 6, 3), 3),
            ((2, 5, 1, 2), 1),
            ((4, 3), 1),
        ]
    )
    source = Value("x", net.x, axis, mixed=True)
    first = project(net, source)
    assert first is not None
    if net.coin(40):
        project(net, source)
    weights = {**STEPS, **(WILD if wild else {})}
    steps = [step for step, weight in weights.items() for _ in range(weight)]
    for _ in range(net.dice.count(2, 11)):
        value = net.values[-1] if net.coin(60) else net.pick(net.values)
        step = MAKES[favour] if favour and net.coin() else net.pick(steps)
        made = step(net, value)
        if made is not None and prod(made.shape) > LARGEST:
            small = net.emit(f"{{out}} = Tanh({made.name})", made)
            net.values.remove(made) if made in net.values else None
            finish(net, Value(small, made.shape, made.axis, made.mixed))
            if not net.values:
                return net
    for value in list(net.values):
        if value.name not in net.read and (not wild or net.coin(80)):
            finish(net, value)
    if not net.outputs:
        finish(net, net.values[-1])
    return net


@st.composite
def networks(draw: st.DrawFn, *, wild: bool) -> Network:
    """Random networks for Hypothesis."""
    return network(Drawn(draw), wild=wild)


class Unfit(Exception):
    """The network does not run in onnxruntime as it was built."""


def judge(net: Network, *, rows: int = 2) -> int:
    """Both oracles on every layer that is found; of a tame network, every producer is. How many layers there are.

    A Round or a Hardmax may turn a rounding error into a large one: what is wrong must be so on all of several rows.
    """
    proto = net.model()
    feeds = [{"x": normal(*net.x, seed=seed)} for seed in range(1, rows + 1)]
    try:
        graph = graph_of(proto)
        before = [run(proto, feed) for feed in feeds]
    except Exception as error:
        raise Unfit(f"{error}\n{net.show()}") from error
    if not all(np.isfinite(output).all() for outputs in before for output in outputs):
        raise Unfit(f"not finite\n{net.show()}")
    layers, refusals = find_layers(graph)
    if not net.wild:
        missing = set(net.producers) - {name for layer in layers for name in layer.members}
        assert not missing, f"not found: {missing}: {refusals}\n{net.show()}"

    def alike(oracle: str, expected: ModelProto, result: ModelProto) -> None:
        gap = np.inf
        for feed, old in zip(feeds, before, strict=True):
            one = old if expected is proto else run(expected, feed)
            gap = min(gap, max(gaps(graph, one, run(result, feed), least=1e-4).values(), default=0.0))
            if gap <= TOLERANCE:
                return
        raise AssertionError(f"{oracle}: {gap}\n{net.show()}")

    halves = [half(layer) for layer in layers]
    for layer, keep in zip(layers, halves, strict=True):
        quiet = silenced(graph, [(layer, np.setdiff1d(np.arange(layer.n), keep))])
        alike(f"oracle A of {layer.name}", quiet, dropped(graph, layer, keep))
        alike(f"oracle B of {layer.name}", proto, dropped(graph, layer, shuffled(layer)))
    if len(layers) > 1:
        edits: Edits = {}
        for layer, keep in zip(layers, halves, strict=True):
            edits = sliced(graph, edits, layer, keep)
        drop = [(layer, np.setdiff1d(np.arange(layer.n), keep)) for layer, keep in zip(layers, halves, strict=True)]
        changed = frozenset[str]().union(*(layer.changed for layer in layers))
        alike("oracle A of all layers", silenced(graph, drop), apply(graph, edits, changed))
    return len(layers)
