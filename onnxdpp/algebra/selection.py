"""Which neurons or edges stay, from second moments alone.

Every method answers the same question, k of n items, for neurons once per layer and for edges once per output:

==============  =====================================================================================
``dpp``         the mode of the k-DPP of L = L' + epsilon I, greedily (deterministic)
``dpp-sample``  an exact draw from it (the papers' own)
``importance``  the k largest: neurons by mean absolute outgoing weight, edges by absolute weight
``random``      k uniformly
==============  =====================================================================================

A neuron's outgoing weights are those of all consumers of its layer; its Gram is the mean over theirs.

References
----------
T. He et al.: Reshaping deep neural network for fast decoding by node-pruning, ICASSP 2014 (onorm).
The kernels: see `kernels`. The draws and the mode: see `dpp` and `greedy`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from onnxdpp.algebra.dpp import sample_k_dpp
from onnxdpp.algebra.greedy import maximise_by_columns
from onnxdpp.algebra.kernels import edge_gram, linear_kernel, median_squared_distance, rbf_kernel
from onnxdpp.algebra.moments import Matrix, Moments

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Rule:
    """How to choose.

    Attributes
    ----------
    method : {"dpp", "dpp-sample", "importance", "random"}
    kernel : {"rbf", "linear"}
    beta : float or None
        Of the rbf kernel, on mean squared distances; None: 1 / median of the layer's.
    epsilon : float
        L = L' + epsilon I.
    """

    method: str = "dpp"
    kernel: str = "rbf"
    beta: float | None = None
    epsilon: float = 0.01

    @property
    def uses_kernel(self) -> bool:
        """Whether the method looks at a kernel at all."""
        return self.method in ("dpp", "dpp-sample")


@dataclass(frozen=True)
class Items:
    """One problem: n items, what each is worth, and how alike they are.

    Attributes
    ----------
    contribution : (n,) float64 array
        Squared weight times variance: decides between items that the kernel cannot tell apart.
    importance : (n,) float64 array
    make_likelihood : callable
        Gives L', (n, n) float64; called only by methods that look at it.
    """

    contribution: Matrix
    importance: Matrix
    make_likelihood: Callable[[], Matrix]

    @cached_property
    def likelihood(self) -> Matrix:
        """L', (n, n) float64."""
        return self.make_likelihood()


def _mode(items: Items, k: int, epsilon: float, _: Generator) -> Indices:
    likelihood = items.likelihood
    return maximise_by_columns(
        likelihood.__getitem__, np.diagonal(likelihood), k, epsilon=epsilon, contribution=items.contribution
    )


def _draw(items: Items, k: int, epsilon: float, rng: Generator) -> Indices:
    return sample_k_dpp(items.likelihood, k, epsilon=epsilon, rng=rng)


def _largest(items: Items, k: int, _: float, __: Generator) -> Indices:
    return np.argsort(-items.importance, kind="stable")[:k]


def _uniform(items: Items, k: int, _: float, rng: Generator) -> Indices:
    return rng.choice(len(items.importance), k, replace=False)


METHODS: dict[str, Callable[[Items, int, float, Generator], Indices]] = {
    "dpp": _mode,
    "dpp-sample": _draw,
    "importance": _largest,
    "random": _uniform,
}
KERNELS = ("rbf", "linear")


def choose(items: Items, k: int, rule: Rule, rng: Generator) -> Indices:
    """The (k,) sorted indices of the items that stay."""
    if k == len(items.importance):
        return np.arange(k)
    return np.sort(METHODS[rule.method](items, k, rule.epsilon, rng))


def neuron_beta(observed: Sequence[Moments], rule: Rule) -> float | None:
    """The beta of a layer of neurons: as given, or 1 / median; None where no rbf kernel is used."""
    return _beta(rule, lambda: median_squared_distance(_mean_gram(observed)))


def edge_beta(moments: Moments, rule: Rule) -> float | None:
    """The beta of all edges of a projection: as given, or 1 / median; None where no rbf kernel is used."""
    return _beta(rule, lambda: median_squared_distance(moments.gram, moments.weights))


def choose_neurons(observed: Sequence[Moments], k: int, rule: Rule, beta: float | None, seed: SeedSequence) -> Indices:
    """Choose the neurons of a layer that stay.

    Parameters
    ----------
    observed : sequence of Moments
        One for each value that consumers read, their weights side by side.
    k : int
    rule : Rule
    beta : float or None
        From `neuron_beta`.
    seed : SeedSequence

    Returns
    -------
    (k,) sorted integer array
    """
    items = Items(
        contribution=_sum_over(observed, lambda part: (part.weights**2).sum(1) * part.variance_x),
        importance=np.abs(np.hstack([part.weights for part in observed])).mean(1),
        make_likelihood=partial(_neuron_kernel, observed, rule, beta),
    )
    return choose(items, k, rule, default_rng(seed))


def choose_edges(
    moments: Moments, k: int, rule: Rule, beta: float | None, seed: SeedSequence, executor: Executor
) -> Indices:
    """Choose the edges into each output that stay.

    Parameters
    ----------
    moments : Moments
    k : int
        Edges that each output keeps.
    rule : Rule
    beta : float or None
        From `edge_beta`.
    seed : SeedSequence
        Each output draws from a child of its own, so that the number of workers does not matter.
    executor : Executor

    Returns
    -------
    (k, m) integer array
        Column j, sorted: the inputs that output j keeps.
    """
    one = partial(_choose_edges_of, moments, k, rule, beta)
    m = moments.weights.shape[1]
    return np.stack(list(executor.map(one, range(m), seed.spawn(m))), axis=1)


def _choose_edges_of(
    moments: Moments, k: int, rule: Rule, beta: float | None, output: int, seed: SeedSequence
) -> Indices:
    weights = np.ascontiguousarray(moments.weights[:, output])
    items = Items(
        contribution=weights**2 * moments.variance_x,
        importance=np.abs(weights),
        make_likelihood=partial(_edge_kernel, moments, weights, rule, beta),
    )
    return choose(items, k, rule, default_rng(seed))


def _neuron_kernel(observed: Sequence[Moments], rule: Rule, beta: float | None) -> Matrix:
    if rule.kernel == "linear":
        if len(observed) == 1:
            return linear_kernel(observed[0].covariance, observed[0].weights)
        shared = _sum_over(observed, lambda part: (part.weights @ part.weights.T) * part.covariance)
        return linear_kernel(shared, np.ones(len(shared)))
    assert beta is not None
    return rbf_kernel(_mean_gram(observed), beta)


def _edge_kernel(moments: Moments, weights: Matrix, rule: Rule, beta: float | None) -> Matrix:
    if rule.kernel == "linear":
        return linear_kernel(moments.covariance, weights)
    assert beta is not None
    return rbf_kernel(edge_gram(moments.gram, weights), beta)


def _mean_gram(observed: Sequence[Moments]) -> Matrix:
    return _sum_over(observed, lambda part: part.gram) / len(observed)


def _sum_over(observed: Sequence[Moments], term: Callable[[Moments], Matrix]) -> Matrix:
    """The sum of `term` over all moments, in their order."""
    total = term(observed[0])
    for part in observed[1:]:
        total = total + term(part)
    return total


def _beta(rule: Rule, median: Callable[[], float]) -> float | None:
    if not rule.uses_kernel or rule.kernel != "rbf":
        return None
    return rule.beta if rule.beta is not None else 1.0 / median()
