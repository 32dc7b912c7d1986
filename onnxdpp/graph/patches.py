"""What a convolution reads: the patch of its input behind each position of its output, as rows.

With x (N, C, *size) the input, a convolution gives at every output position a linear map of the (C / groups) x kernel
entries under its window, zeros where the window hangs over the edge. A transposed convolution is the same, with the
kernel reversed, upon x with zeros put between its entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from onnx import NodeProto

from onnxdpp.graph.attributes import Array, attribute


@dataclass(frozen=True)
class Patch:
    """Windows of a convolution.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
        One for each spatial axis.
    pads : tuple of int or None
        Zeros before, then behind each axis; None: so many that output positions are ceil(size / stride).
    lower : bool
        Without `pads`: an odd zero goes before.
    stuffing : tuple of int or None
        A transposed convolution: its strides (`strides` are 1 then).
    extra : tuple of int
        Further zeros behind each axis (output_padding).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    lower: bool = False
    stuffing: tuple[int, ...] | None = None
    extra: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Entries of the kernel."""
        return prod(self.kernel)

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many output positions there are along each axis, for an input of this `size`."""
        padded = [
            (length - 1) * stuff + 1 + before + behind
            for length, stuff, (before, behind) in zip(size, self._stuffing, self._padding(size), strict=True)
        ]
        return tuple(
            max(0, (length - dilation * (kernel - 1) - 1) // stride + 1)
            for length, dilation, kernel, stride in zip(padded, self.dilations, self.kernel, self.strides, strict=True)
        )

    def rows(self, x: Array, row: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
        """The patches of `x` behind some output positions.

        Parameters
        ----------
        x : (N, C, *size) array
        row : (r,) integer array
            Which of the N.
        position : (r,) integer array
            Which output position, counted in C order.

        Returns
        -------
        (r, C * kernel entries) array
        """
        padded = self._padded(x)
        place = np.unravel_index(position, self.positions(x.shape[2:]))
        # Windows as a view: (N, C, *positions, *kernel).
        steps = padded.strides[2:]
        windows = as_strided(
            padded,
            (*padded.shape[:2], *self.positions(x.shape[2:]), *self.kernel),
            (
                *padded.strides[:2],
                *(step * stride for step, stride in zip(steps, self.strides, strict=True)),
                *(step * dilation for step, dilation in zip(steps, self.dilations, strict=True)),
            ),
            writeable=False,
        )
        # The two index groups lie apart, so that the picked axis comes first.
        picked: tuple[Any, ...] = (row, slice(None), *place)
        rows: Array = windows[picked]
        return rows.reshape(len(row), -1)

    @property
    def _stuffing(self) -> tuple[int, ...]:
        return self.stuffing or (1,) * len(self.kernel)

    def _padding(self, size: Sequence[int]) -> list[tuple[int, int]]:
        axes = range(len(self.kernel))
        if self.pads is not None:
            extra = self.extra or (0,) * len(self.kernel)
            return [(self.pads[axis], self.pads[axis + len(axes)] + extra[axis]) for axis in axes]
        padding = []
        for axis in axes:
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            needed = max(0, (-(-size[axis] // self.strides[axis]) - 1) * self.strides[axis] + reach - size[axis])
            small, large = needed // 2, needed - needed // 2
            padding.append((large, small) if self.lower else (small, large))
        return padding

    def _padded(self, x: Array) -> Array:
        size = [(length - 1) * stuff + 1 for length, stuff in zip(x.shape[2:], self._stuffing, strict=True)]
        padding = self._padding(x.shape[2:])
        outer = [before + length + behind for length, (before, behind) in zip(size, padding, strict=True)]
        result = np.zeros((*x.shape[:2], *outer), x.dtype)
        # Padding may be negative (a transposed convolution with pads beyond its kernel): then entries fall off.
        inner = [
            slice(max(0, before), max(0, before) + length) for length, (before, _) in zip(size, padding, strict=True)
        ]
        if any(before < 0 or behind < 0 for before, behind in padding):
            room = [length + max(0, a) + max(0, b) for length, (a, b) in zip(size, padding, strict=True)]
            result = np.zeros((*x.shape[:2], *room), x.dtype)
        steps = tuple(slice(part.start, part.stop, stuff) for part, stuff in zip(inner, self._stuffing, strict=True))
        result[(slice(None), slice(None), *steps)] = x
        cut = tuple(slice(max(0, -a), result.shape[axis + 2] - max(0, -b)) for axis, (a, b) in enumerate(padding))
        return result[(slice(None), slice(None), *cut)]


def patch_of(node: NodeProto, weight: Sequence[int]) -> Patch | str:
    """The windows of a Conv or ConvTranspose node with a weight of this shape; or why they are not known."""
    kernel = tuple(weight[2:])
    rank = len(kernel)
    strides = tuple(attribute(node, "strides", None) or (1,) * rank)
    dilations = tuple(attribute(node, "dilations", None) or (1,) * rank)
    auto = attribute(node, "auto_pad", b"NOTSET").decode()
    pads: tuple[int, ...] | None = tuple(attribute(node, "pads", None) or (0,) * (2 * rank))
    if auto == "VALID":
        pads = (0,) * (2 * rank)
    if node.op_type == "Conv":
        if auto.startswith("SAME"):
            pads = None
        return Patch(kernel, strides, dilations, pads, auto == "SAME_LOWER")
    if auto.startswith("SAME") or attribute(node, "output_shape", None):
        return "its pads are computed from an output shape"
    extra = tuple(attribute(node, "output_padding", None) or (0,) * rank)
    assert pads is not None
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    around = tuple(reach[axis % rank] - pad for axis, pad in enumerate(pads))
    return Patch(kernel, (1,) * rank, dilations, around, stuffing=strides, extra=extra)
