"""From the inputs of consumers to neurons: a neuron may be many inputs (a channel, at each place of a kernel), or few.

What selection needs to know of n neurons, put together from the moments at all values that consumers read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Matrix, Moments


@dataclass(frozen=True)
class Inputs:
    """Moments of what enters consumers, and whose inputs they are.

    Attributes
    ----------
    moments : Moments
        Of N inputs.
    neurons : (N,) integer array
        The neuron that each input belongs to; -1 for inputs that always stay.
    """

    moments: Moments
    neurons: NDArray[np.intp]

    def kept(self, keep: NDArray[np.intp]) -> NDArray[np.intp]:
        """The inputs that are left when the neurons `keep` are, (k',) sorted."""
        return np.flatnonzero(np.isin(self.neurons, keep) | (self.neurons < 0))

    def through(self, root: Matrix) -> "Inputs":
        """The same inputs, with errors of the outputs weighted by ``root rootᵀ``; see `Moments.through`."""
        return Inputs(self.moments.through(root), self.neurons)


def through(observed: Sequence[Inputs], roots: Sequence[Matrix] | None) -> Sequence[Inputs]:
    """What is observed, with the errors of outputs weighted, a root for each; as it is where there are none."""
    return observed if roots is None else [part.through(root) for part, root in zip(observed, roots, strict=True)]


def neuron_gram(observed: Sequence[Inputs], n: int) -> Matrix:
    """(n, n): second moments of neurons, the mean over values and over the inputs of a neuron in each.

    The b-th inputs of all neurons are taken together; where a neuron has no b-th input, or is not in a value, it
    counts as zero there. So this is a Gram matrix too.
    """
    return _sum(observed, n, _block_mean) / len(observed)


def neuron_contributions(observed: Sequence[Inputs], n: int) -> Matrix:
    """(n, n): how what two neurons add to the consumers' outputs varies together, over all outputs."""

    def shared(part: Inputs, n: int) -> Matrix:
        weights = part.moments.weights
        return _summed(_summed((weights @ weights.T) * part.moments.covariance, part.neurons, n).T, part.neurons, n)

    return _sum(observed, n, shared)


def neuron_contribution(observed: Sequence[Inputs], n: int) -> Matrix:
    """(n,): squared weights times variance, over all outputs and all inputs of a neuron."""

    def alone(part: Inputs, n: int) -> Matrix:
        return _summed((part.moments.weights**2).sum(1) * part.moments.variance_x, part.neurons, n)

    return _sum(observed, n, alone)


def neuron_weight(observed: Sequence[Inputs], n: int) -> Matrix:
    """(n,): mean absolute weight of what leaves each neuron."""

    def count(part: Inputs, n: int) -> Matrix:
        outputs = part.moments.weights.shape[1]
        return _summed(np.full(len(part.neurons), float(outputs)), part.neurons, n)

    def size(part: Inputs, n: int) -> Matrix:
        return _summed(np.abs(part.moments.weights).sum(1), part.neurons, n)

    weight: Matrix = _sum(observed, n, size) / np.maximum(_sum(observed, n, count), 1)
    return weight


def neuron_activity(observed: Sequence[Inputs], n: int) -> Matrix:
    """(n,): norm of the weights times root mean square, summed over consumers and the inputs of a neuron (Wanda)."""

    def size(part: Inputs, n: int) -> Matrix:
        norms = np.sqrt((part.moments.weights**2).sum(1) * np.diagonal(part.moments.gram))
        return _summed(norms, part.neurons, n)

    return _sum(observed, n, size)


def _block_mean(part: Inputs, n: int) -> Matrix:
    if np.array_equal(part.neurons, np.arange(n)):
        return part.moments.gram
    order = np.argsort(part.neurons, kind="stable")
    order = order[part.neurons[order] >= 0]
    neurons = part.neurons[order]
    sizes = np.bincount(neurons, minlength=n)
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(sizes)])[neurons]
    total = np.zeros((n, n))
    for block in range(sizes.max()):
        inputs, rows = order[place == block], neurons[place == block]
        total[np.ix_(rows, rows)] += part.moments.gram[np.ix_(inputs, inputs)]
    mean: Matrix = total / sizes.max()
    return mean


def _summed(array: Matrix, neurons: NDArray[np.intp], n: int) -> Matrix:
    """Sums along the first axis over the inputs of each neuron."""
    if np.array_equal(neurons, np.arange(n)):
        return array
    result = np.zeros((n, *array.shape[1:]))
    order = np.argsort(neurons, kind="stable")
    order = order[neurons[order] >= 0]
    present, starts = np.unique(neurons[order], return_index=True)
    result[present] = np.add.reduceat(array[order], starts, axis=0)
    return result


def _sum(observed: Sequence[Inputs], n: int, term: Callable[[Inputs, int], Matrix]) -> Matrix:
    """The sum of `term` over all, in their order."""
    total = term(observed[0], n)
    for part in observed[1:]:
        total = total + term(part, n)
    return total
