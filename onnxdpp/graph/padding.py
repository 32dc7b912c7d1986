"""Where values are padding: the mask, an input of the model, is zero there.

It speaks of values that have its axes in front, as ``(rows, tokens)`` are of ``(rows, tokens, features)``; and of
outputs that are declared with its very axes, and so have one number for each of its entries. Of all others it says
nothing: shapes alone do not tell, as a row of scores may happen to be as long as a row of tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxdpp.errors import UsageError
from onnxdpp.graph.batches import Batch
from onnxdpp.graph.index import Array
from onnxdpp.graph.inputs import InputSpec, shaped_alike


class Padding:
    """What a mask says of the values of a model.

    Parameters
    ----------
    model : ModelProto
    mask : str or None
        The name of the input; None: nothing is padding.
    """

    def __init__(self, model: ModelProto, mask: str | None) -> None:
        self._mask = mask
        self._entrywise = frozenset[str]() if mask is None else shaped_alike(model, mask)

    def of(self, batch: Batch, value: Array, output: str | None = None) -> NDArray[np.bool_] | None:
        """Where a value is padding.

        Parameters
        ----------
        batch : Batch
            With the mask.
        value : array
            As it is for this batch.
        output : str, optional
            Its name, where it is an output of the model.

        Returns
        -------
        bool array of the mask's shape, the leading axes of `value`; or None
            None where the mask says nothing of it.
        """
        if self._mask is None:
            return None
        mask = batch.feeds[self._mask]
        axes = value.ndim if output in self._entrywise else value.ndim - 1
        if not 0 < mask.ndim <= axes or value.shape[: mask.ndim] != mask.shape:
            return None
        return np.asarray(mask == 0)


NO_PADDING = Padding(ModelProto(), None)


def blanked(value: Array, padding: NDArray[np.bool_] | None, blank: float = 0.0) -> Array:
    """`value`, with `blank` wherever there is padding (leading axes of it)."""
    if padding is None:
        return value
    value = value.copy()
    value[padding] = blank
    return value


def check_mask(mask: str | None, inputs: Sequence[InputSpec]) -> None:
    """Refuse a mask that is no input."""
    if mask is not None and mask not in (known := [spec.name for spec in inputs]):
        raise UsageError(f"The mask {mask!r} is no input of the model. Its inputs: {', '.join(map(repr, known))}.")
