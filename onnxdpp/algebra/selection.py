"""Which neurons or edges stay, from second moments alone.

Every method answers the same question, k of n items, for neurons once per layer and for edges once per output:

===============  ====================================================================================
``dpp``          the mode of the k-DPP of L = L' + epsilon I, greedily (deterministic)
``dpp-sample``   an exact draw from it (the papers' own)
``obs``          the least error of the refit, backward: from all items, the one goes that costs least
``omp``          the least error of the refit, forward: from none, the one joins that saves most
``wanda``        the k largest: norm of the weights times root mean square of the input
``fluctuation``  the k largest: squared weights times variance of the input
``importance``   the k largest: neurons by mean absolute outgoing weight, edges by absolute weight
``random``       k uniformly
===============  ====================================================================================

A neuron's outgoing weights are those of all consumers of its layer; its Gram is the mean over theirs.

References
----------
M. Sun et al.: A simple and effective pruning approach for large language models, arXiv:2306.11695 (Wanda).
Y. An et al.: Fluctuation-based adaptive structured pruning for large language models, arXiv:2312.11983 (FLAP).
T. He et al.: Reshaping deep neural network for fast decoding by node-pruning, ICASSP 2014 (onorm).
The kernels: see `kernels`. The draws and the mode: see `dpp` and `greedy`. Least errors: see `tableau` and
`edge_selection`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray

from onnxdpp.algebra.dpp import expected_size, maximise_k_dpp, sample_k_dpp
from onnxdpp.algebra.edge_selection import eliminate_edges, pursue_edges
from onnxdpp.algebra.edges import EdgeKernel, maximise_edges, sample_edges
from onnxdpp.algebra.kernels import linear_kernel, median_squared_distance, rbf_kernel
from onnxdpp.algebra.moments import Matrix, Moments
from onnxdpp.algebra.neurons import (
    Inputs,
    neuron_activity,
    neuron_contribution,
    neuron_contributions,
    neuron_gram,
    neuron_weight,
)
from onnxdpp.algebra.tableau import eliminate, pursue, swapped

Indices = NDArray[np.intp]

METHODS = ("dpp", "dpp-sample", "obs", "omp", "wanda", "fluctuation", "importance", "random")
PATTERNED = ("dpp", "wanda", "fluctuation", "importance", "random")
"""Methods that can keep N of every M edges."""
KERNELS = ("rbf", "linear", "consumer")
SMALLEST = 1e-300


@dataclass(frozen=True)
class Rule:
    """How to choose.

    Attributes
    ----------
    method : one of `METHODS`
    kernel : {"rbf", "linear", "consumer"}
    beta : float or None
        Of the rbf and consumer kernels, on mean squared distances; None: 1 / median of the layer's.
    epsilon : float
        L = L' + epsilon I.
    pattern : (int, int) or None
        N of every M consecutive inputs of an output stay (edges; the methods `PATTERNED`).
    form : {"affine", "linear"}
        Of the refit whose error ``obs``, ``omp`` and swaps look at.
    swaps : int
        How many pairs of neurons may be swapped afterwards, while the error of the refit falls.
    """

    method: str = "dpp"
    kernel: str = "rbf"
    beta: float | None = None
    epsilon: float = 0.01
    pattern: tuple[int, int] | None = None
    form: str = "affine"
    swaps: int = 0

    @property
    def uses_kernel(self) -> bool:
        """Whether the method looks at a kernel at all."""
        return self.method in ("dpp", "dpp-sample")


def neuron_beta(observed: Sequence[Inputs], n: int, rule: Rule) -> float | None:
    """The beta of a layer of n neurons: as given, or 1 / median; None where no rbf kernel is used."""
    gram = neuron_contributions if rule.kernel == "consumer" else neuron_gram
    return _beta(rule, lambda: median_squared_distance(gram(observed, n)))


def edge_beta(moments: Moments, rule: Rule) -> float | None:
    """The beta of all edges of a projection: as given, or 1 / median; None where no rbf kernel is used.

    What edges contribute to their consumer is what the rbf kernel compares: the consumer kernel is the same for them.
    """
    return _beta(rule, lambda: median_squared_distance(moments.gram, moments.weights))


def expected_neurons(observed: Sequence[Inputs], n: int, rule: Rule) -> float:
    """How many of n neurons the DPP itself would keep: `expected_size` of the layer's kernel.

    The number of neurons that Divnet's section 3 lets the DPP choose. It hangs on beta and epsilon.
    """
    return expected_size(neuron_kernel(observed, n, rule, neuron_beta(observed, n, rule)), rule.epsilon)


def choose_neurons(
    observed: Sequence[Inputs],
    n: int,
    k: int,
    rule: Rule,
    beta: float | None,
    seed: SeedSequence,
    sections: Indices | None = None,
) -> Indices:
    """Choose the neurons of a layer that stay.

    Parameters
    ----------
    observed : sequence of Inputs
        One for each value that consumers read, their weights side by side.
    n, k : int
        Neurons, and how many stay.
    rule : Rule
    beta : float or None
        From `neuron_beta`.
    seed : SeedSequence
    sections : (n,) integer array, optional
        At least one neuron of each section stays (k is no smaller than their number).

    Returns
    -------
    (k,) sorted integer array
    """
    if k == n:
        return np.arange(n)
    chosen = _neurons(observed, n, k, rule, beta, seed, sections)
    if sections is not None:
        chosen = _one_of_each(chosen, sections, neuron_contribution(observed, n))
    if rule.swaps:
        chosen = swapped(observed, n, rule.form, np.sort(chosen), most=rule.swaps, sections=sections)
    return np.sort(chosen)


def _neurons(
    observed: Sequence[Inputs],
    n: int,
    k: int,
    rule: Rule,
    beta: float | None,
    seed: SeedSequence,
    sections: Indices | None,
) -> Indices:
    match rule.method:
        case "importance":
            return _largest(neuron_weight(observed, n), k)
        case "wanda":
            return _largest(neuron_activity(observed, n), k)
        case "fluctuation":
            return _largest(neuron_contribution(observed, n), k)
        case "random":
            return default_rng(seed).choice(n, k, replace=False)
        case "obs":
            return eliminate(observed, n, rule.form, least=k, sections=sections)[0][:k]
        case "omp":
            return pursue(observed, n, rule.form, most=k)[0]
        case "dpp-sample":
            kernel = neuron_kernel(observed, n, rule, beta)
            return sample_k_dpp(kernel, k, epsilon=rule.epsilon, rng=default_rng(seed))
        case "dpp":
            worth = neuron_contribution(observed, n)
            kernel = neuron_kernel(observed, n, rule, beta)
            return maximise_k_dpp(kernel, k, epsilon=rule.epsilon, contribution=worth)
    raise ValueError(f"unknown method {rule.method!r}")


def _one_of_each(chosen: Indices, sections: Indices, worth: Matrix) -> Indices:
    """`chosen`, with the best neuron of each section that has none, in place of the least where there are several."""
    kept = set(chosen.tolist())
    for section in np.unique(sections):
        members = np.flatnonzero(sections == section)
        if kept.isdisjoint(members.tolist()):
            counts = np.bincount(sections[sorted(kept)], minlength=sections.max() + 1)
            spare = [neuron for neuron in sorted(kept) if counts[sections[neuron]] > 1]
            kept.remove(min(spare, key=lambda neuron: (worth[neuron], -neuron)))
            kept.add(int(members[np.argmax(worth[members])]))
    return np.array(sorted(kept), np.intp)


def choose_edges(
    moments: Moments, k: int, rule: Rule, beta: float | None, seed: SeedSequence, executor: Executor
) -> Indices:
    """Choose the edges into each output that stay.

    Parameters
    ----------
    moments : Moments
    k : int
        Edges that each output keeps; with a pattern, what its groups keep together.
    rule : Rule
    beta : float or None
        From `edge_beta`.
    seed : SeedSequence
        Each output draws from a child of its own, so that the number of workers does not matter.
    executor : Executor

    Returns
    -------
    (k, m) integer array
        Column j, sorted: the inputs that output j keeps. Where no more than k of its edges have a weight (with a
        pattern: no more than N of a group), these are among them, but for methods that draw.
    """
    weights = moments.weights
    n, m = weights.shape
    if k == n:
        return np.tile(np.arange(n)[:, None], m)
    if rule.method == "importance":
        chosen = _largest_in_groups(np.abs(weights), k, rule.pattern)
    elif rule.method == "wanda":
        chosen = _largest_in_groups(np.abs(weights) * np.sqrt(np.diagonal(moments.gram))[:, None], k, rule.pattern)
    elif rule.method == "fluctuation":
        chosen = _largest_in_groups(weights**2 * moments.variance_x[:, None], k, rule.pattern)
    elif rule.method == "random":
        scores = np.stack([default_rng(child).random(n) for child in seed.spawn(m)], axis=1)
        chosen = _largest_in_groups(scores, k, rule.pattern)
    elif rule.method == "obs":
        chosen = eliminate_edges(moments, k, rule.form, executor)
    elif rule.method == "omp":
        chosen = pursue_edges(moments, k, rule.form, executor)
    elif rule.uses_kernel:
        kernel = EdgeKernel(moments.covariance if beta is None else moments.gram, beta)
        if rule.method == "dpp-sample":
            chosen = sample_edges(kernel, weights, k, epsilon=rule.epsilon, seed=seed, executor=executor)
        else:
            kept, group = (k, None) if rule.pattern is None else rule.pattern
            chosen = maximise_edges(
                kernel,
                weights,
                kept,
                epsilon=rule.epsilon,
                variances=moments.variance_x,
                group=group,
                executor=executor,
            )
    else:
        raise ValueError(f"unknown method {rule.method!r}")
    if rule.method not in ("dpp-sample", "random"):
        chosen = _with_all_that_carry(chosen, weights, rule.pattern)
    return np.sort(chosen, axis=0)


def _with_all_that_carry(chosen: Indices, weights: Matrix, pattern: tuple[int, int] | None) -> Indices:
    """The choice (k, m), but where no more edges have a weight than may stay, those and what there is room for.

    Nothing is lost so. What was pruned before keeps its edges, whatever the method makes of inputs without a weight.
    With a pattern this holds for each group.
    """
    carries = weights != 0
    n, k = len(weights), len(chosen)
    sizes = [k] if pattern is None else pattern_sizes(n, pattern)
    starts = [0] if pattern is None else range(0, n, pattern[1])
    counts = np.add.reduceat(carries, list(starts), axis=0, dtype=np.intp)
    few = np.repeat(counts <= np.array(sizes)[:, None], np.diff([*starts, n]), axis=0)
    if not (few & ~carries).any():
        return chosen
    scores = 2 * (few & carries).astype(np.int8)
    np.put_along_axis(scores, chosen, np.take_along_axis(scores, chosen, 0) + 1, 0)
    return _largest_in_groups(scores, k, pattern)


def _largest(scores: Matrix, k: int) -> Indices:
    """The k largest along the first axis; ties go to the lower index."""
    return np.argsort(-scores, axis=0, kind="stable")[:k]


def pattern_sizes(n: int, pattern: tuple[int, int]) -> list[int]:
    """How many of each group of M consecutive inputs stay; the last group may be a short one.

    >>> pattern_sizes(9, (2, 4))
    [2, 2, 1]
    """
    kept, group = pattern
    return [min(kept, n - first) for first in range(0, n, group)]


def _largest_in_groups(scores: Matrix, k: int, pattern: tuple[int, int] | None) -> Indices:
    """The k largest along the first axis; or, with a pattern, the N largest of every M consecutive ones."""
    if pattern is None:
        return _largest(scores, k)
    kept, group = pattern
    parts = [
        first + _largest(scores[first : first + group], size)
        for first, size in zip(range(0, len(scores), group), pattern_sizes(len(scores), (kept, group)), strict=True)
    ]
    return np.concatenate(parts)


def neuron_kernel(observed: Sequence[Inputs], n: int, rule: Rule, beta: float | None) -> Matrix:
    """L' (n, n) of a layer; `beta` is that of `neuron_beta`."""
    if beta is None:
        return linear_kernel(neuron_contributions(observed, n), np.ones(n)[:, None])
    return rbf_kernel((neuron_contributions if rule.kernel == "consumer" else neuron_gram)(observed, n), beta)


def _beta(rule: Rule, median: Callable[[], float]) -> float | None:
    if not rule.uses_kernel or rule.kernel == "linear":
        return None
    if rule.beta is not None:
        return rule.beta
    distance = median()
    # Distances that float64 can hardly hold are no distances: as where all items coincide.
    return 1.0 / distance if distance > SMALLEST else 1.0
