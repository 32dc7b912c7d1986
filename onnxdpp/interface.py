"""What two models must have in common to be compared: their inputs and outputs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxdpp.errors import ModelError
from onnxdpp.graph.batches import InputSpec
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.walking import quoted

Value = tuple[str, str, tuple[Any, ...]]


def check_interface(before: Session, after: Session) -> None:
    """Refuse two models that do not have the same inputs and outputs, in whatever order.

    Dimensions that one of them leaves free may be anything in the other.

    Raises
    ------
    ModelError
        It names the first that differs.
    """
    for what, ours, theirs in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        others = {value[0]: value for value in theirs}
        for value in ours:
            if value[0] not in others:
                raise ModelError(_gap(what, value, None))
            if not _alike(value, others.pop(value[0])):
                other = next(part for part in theirs if part[0] == value[0])
                raise ModelError(_gap(what, value, other))
        for value in others.values():
            raise ModelError(_gap(what, None, value))


def _gap(what: str, value: Value | None, other: Value | None) -> str:
    def shown(part: Value | None) -> str:
        return "none" if part is None else f"{part[1]} {list(part[2])}"

    name = quoted((value or other or ("",))[0])
    return (
        f"The models cannot be compared: {what} {name} is {shown(value)} in the original, {shown(other)} in the pruned "
        "model."
    )


def _alike(value: Value, other: Value) -> bool:
    (_, kind, shape), (_, other_kind, other_shape) = value, other
    pairs = zip(shape, other_shape, strict=False)
    fits = all(a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in pairs)
    return kind == other_kind and fits and (len(shape) == len(other_shape) or not shape or not other_shape)


def joint(inputs: Sequence[InputSpec], others: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs of both models at once: a dimension is fixed where it is in one of them."""
    shapes = {spec.name: spec.shape for spec in others}

    def joined(spec: InputSpec) -> InputSpec:
        other = shapes[spec.name]
        if spec.shape is None or other is None or len(spec.shape) != len(other):
            return replace(spec, shape=spec.shape or other)
        fixed = (b if isinstance(b, int) else a for a, b in zip(spec.shape, other, strict=True))
        return replace(spec, shape=tuple(fixed))

    return [joined(spec) for spec in inputs]
