"""Bugs planted into the operator table, one at a time, for the random networks to find."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from networks import MAKES, Thrown, Unfit, judge, network

from onnxdpp.graph import tracing
from onnxdpp.graph.flow import Carried, Refuse, Step
from onnxdpp.graph.operators import OPERATORS, Entry

Plant = Callable[[Entry], Entry]


def outputs(step: Step) -> list[tuple[int, Carried]]:
    """What an entry has said of its outputs."""
    named = [(number, step.carried_by(name)) for number, name in enumerate(step.node.output) if name]
    return [(number, carried) for number, carried in named if carried is not None]


def rolls(entry: Entry) -> Entry:
    """Labels off by one."""

    def planted(step: Step) -> None:
        entry(step)
        for number, carried in outputs(step):
            step.give(replace(carried, labels=np.roll(carried.labels, 1)), number)

    return planted


def forgets(entry: Entry) -> Entry:
    """Constants and numbers that do not go with the neurons."""

    def planted(step: Step) -> None:
        before = len(step._found.followers), len(step._found.counts)
        entry(step)
        del step._found.followers[before[0] :], step._found.counts[before[1] :]

    return planted


def parts(entry: Entry) -> Entry:
    """Neurons that meet in one entry, and do not become one."""

    def planted(step: Step) -> None:
        unite, step.atoms.unite = step.atoms.unite, lambda *_: None  # type: ignore[method-assign]
        try:
            entry(step)
        finally:
            step.atoms.unite = unite  # type: ignore[method-assign]

    return planted


def never_refuses(entry: Entry) -> Entry:
    """Neurons that pass where they are mixed."""

    def planted(step: Step) -> None:
        try:
            entry(step)
        except Refuse:
            slot = step.carrying()[0]
            carried = step.carried(slot)
            assert carried is not None
            step.give(carried)

    return planted


def turns(entry: Entry) -> Entry:
    """Neurons on the axis before."""

    def planted(step: Step) -> None:
        entry(step)
        for number, carried in outputs(step):
            step.give(replace(carried, axis=carried.axis - 1), number)

    return planted


def does_nothing(_: Entry) -> Entry:
    """An operator that looks as if it carried on nothing that matters."""
    return lambda step: None


def always_refuses(_: Entry) -> Entry:
    """Neurons that could go, and are not found."""

    def planted(_: Step) -> None:
        raise Refuse("is refused")

    return planted


def reverses(entry: Entry) -> Entry:
    """Labels from behind: a Concat in the wrong order, a Flatten that repeats where it should tile."""

    def planted(step: Step) -> None:
        entry(step)
        for number, carried in outputs(step):
            step.give(replace(carried, labels=carried.labels[::-1]), number)

    return planted


NEVER = {"LRN", "Einsum", "DepthToSpace", "MeanVarianceNormalization", "QuantizeLinear", "DequantizeLinear", "Shape"}
FOLLOWED = """
    Add Sub Mul Div Max Min Mean Sum PRelu Pow Mod Greater GreaterOrEqual Less LessOrEqual Where BitwiseAnd BitwiseOr
    BitwiseXor BitShift BatchNormalization InstanceNormalization GroupNormalization Split Slice Reshape
""".split()
UNITING = "Add Sub Mul Max Min Mean Sum Concat Reshape GroupNormalization".split()
MIXING = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    ArgMax ArgMin Softmax LogSoftmax Hardmax LpNormalization CumSum LayerNormalization InstanceNormalization
    GroupNormalization AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Slice Gather LRN Einsum
""".split()
TURNING = """
    Transpose Unsqueeze Squeeze Flatten Reshape Gather ReduceMax ReduceMean ReduceSum Concat Split Relu
""".split()

PLANTS: list[tuple[str, Plant]] = [
    *((operator, rolls) for operator in sorted(MAKES.keys() - NEVER)),
    *((operator, forgets) for operator in FOLLOWED),
    *((operator, parts) for operator in UNITING),
    *((operator, never_refuses) for operator in MIXING),
    *((operator, turns) for operator in TURNING),
    *((operator, reverses) for operator in ("Concat", "Flatten", "Split", "Pad", "Tanh")),
    *((operator, always_refuses) for operator in ("BatchNormalization", "Concat", "Flatten", "Relu", "Split")),
    ("Shape", does_nothing),
]
"""Operator, and what is wrong with its entry."""

QUICK = [
    ("Concat", reverses),
    ("Split", rolls),
    ("Flatten", reverses),
    ("BatchNormalization", forgets),
    ("ReduceMax", never_refuses),
    ("Softmax", never_refuses),
    ("Add", parts),
    ("Transpose", turns),
    ("Slice", forgets),
    ("Gather", never_refuses),
    ("GroupNormalization", parts),
    ("Reshape", forgets),
    ("Flatten", always_refuses),
]
"""Some of them, for every day."""


def found_after(favour: str, limit: int, plant: Callable[[], None], restore: Callable[[], None]) -> int | None:
    """How many networks it takes until one is judged wrong that is right without the bug."""
    for seed in range(limit):
        for wild in (True, False):
            plant()
            try:
                with suppress(Unfit):
                    judge(network(Thrown(seed), wild=wild, favour=favour), rows=1)
                continue
            except Exception:
                restore()
                with suppress(Exception):  # a bug of our own, which the tests without planting show
                    judge(network(Thrown(seed), wild=wild, favour=favour))
                    return 2 * seed + 1 + (not wild)
            finally:
                restore()
    return None


def planted_in(operator: str, plant: Plant, limit: int) -> int | None:
    """How many networks it takes to find a bug in an entry of the table."""
    right = OPERATORS[operator]
    wrong = plant(right)
    return found_after(
        operator, limit, lambda: OPERATORS.__setitem__(operator, wrong), lambda: OPERATORS.__setitem__(operator, right)
    )


def depthwise_without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.Step, "count", lambda *_: None)


def groups_untied(monkeypatch: pytest.MonkeyPatch) -> None:
    def untied(step: Step, part: tracing.Projection, labels: tracing.Labels) -> tracing.Labels:
        return labels[: len(labels) // part.groups] if part.input_axis == 1 else labels

    monkeypatch.setattr(tracing, "_tied", untied)


def sizes_unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "watch", lambda step: None)


def outputs_unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.Walk, "_pin_value", lambda self, name: None)


def axes_unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tracing.Walk, "_across", lambda self, step, part, carried: step.give(replace(carried, axis=part.axis))
    )


ELSEWHERE: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (depthwise_without_groups, ""),
    (groups_untied, ""),
    (sizes_unwatched, "Shape"),
    (outputs_unwatched, ""),
    (axes_unwatched, ""),
]
"""Bugs in the walk itself."""
