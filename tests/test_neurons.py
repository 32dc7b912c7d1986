"""From inputs to neurons: what selection sees of neurons with many inputs, or few, against loops over the rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Accumulator
from onnxdpp.algebra.neurons import (
    Inputs,
    neuron_contribution,
    neuron_contributions,
    neuron_gram,
    neuron_weight,
)

Matrix = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
N = 5


class Drawn:
    """Rows, weights, and the neuron of each input."""

    def __init__(self, rng: np.random.Generator, neurons: NDArray[np.intp]) -> None:
        self.x = rng.standard_normal((30, len(neurons))) + rng.standard_normal(len(neurons))
        self.weights = rng.standard_normal((len(neurons), 4))
        self.neurons = neurons
        accumulator = Accumulator(self.weights, paired=False)
        accumulator.update(self.x)
        self.inputs = Inputs(accumulator.moments(), neurons)

    def block(self, number: int) -> Matrix:
        """The rows, of the number-th input of each neuron; zero where it has none."""
        found = np.zeros((len(self.x), N))
        for neuron in range(N):
            own = np.flatnonzero(self.neurons == neuron)
            if number < len(own):
                found[:, neuron] = self.x[:, own[number]]
        return found

    @property
    def blocks(self) -> int:
        return max(np.count_nonzero(self.neurons == neuron) for neuron in range(N))


@st.composite
def observed(draw: st.DrawFn) -> list[Drawn]:
    rng = np.random.default_rng(draw(SEEDS))
    shapes = {
        "each": np.arange(N),
        "order": rng.permutation(N),
        "blocks": np.repeat(np.arange(N), 3),
        "interleaved": np.tile(np.arange(N), 3),
        "beside": np.concatenate([[-1, -1], np.repeat(np.arange(N), 2), [-1]]),
        "any": np.concatenate([rng.integers(-1, N, 9), [0]]),
    }
    kinds = draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, max_size=3))
    return [Drawn(rng, shapes[kind].astype(np.intp)) for kind in kinds]


def inputs(parts: list[Drawn]) -> list[Inputs]:
    return [part.inputs for part in parts]


@settings(max_examples=80)
@given(observed())
def test_gram_of_neurons_is_the_mean_over_their_inputs(parts: list[Drawn]) -> None:
    expected = np.zeros((N, N))
    for part in parts:
        for number in range(part.blocks):
            block = part.block(number)
            expected += block.T @ block / len(block) / part.blocks / len(parts)
    np.testing.assert_allclose(neuron_gram(inputs(parts), N), expected, rtol=0, atol=1e-10)


@settings(max_examples=80)
@given(observed())
def test_contributions_of_neurons_are_covariances_of_what_they_add_to_the_outputs(parts: list[Drawn]) -> None:
    expected = np.zeros((N, N))
    for part in parts:
        centred = part.x - part.x.mean(0)
        added = np.stack([centred[:, own] @ part.weights[own] for own in (part.neurons == s for s in range(N))])
        expected += np.einsum("srj,trj->st", added, added) / len(centred)
    np.testing.assert_allclose(neuron_contributions(inputs(parts), N), expected, rtol=0, atol=1e-9)


@settings(max_examples=80)
@given(observed())
def test_contribution_of_a_neuron_is_the_sum_over_its_inputs(parts: list[Drawn]) -> None:
    expected = np.zeros(N)
    for part in parts:
        for neuron, weights, variance in zip(part.neurons, part.weights, part.x.var(0), strict=True):
            if neuron >= 0:
                expected[neuron] += (weights**2).sum() * variance
    np.testing.assert_allclose(neuron_contribution(inputs(parts), N), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=80)
@given(observed())
def test_weight_of_a_neuron_is_the_mean_absolute_one(parts: list[Drawn]) -> None:
    expected = np.zeros(N)
    for neuron in range(N):
        own = np.concatenate([np.abs(part.weights[part.neurons == neuron]).ravel() for part in parts])
        expected[neuron] = own.mean() if len(own) else 0.0
    np.testing.assert_allclose(neuron_weight(inputs(parts), N), expected, rtol=1e-14, atol=0)


@settings(max_examples=40)
@given(observed(), SEEDS)
def test_order_of_the_neurons_is_carried_through(parts: list[Drawn], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N)
    renamed = [Inputs(part.inputs.moments, np.append(order, -1)[part.neurons]) for part in parts]
    for measure in (neuron_gram, neuron_contributions):
        before, after = measure(inputs(parts), N), measure(renamed, N)
        np.testing.assert_allclose(after[np.ix_(order, order)], before, rtol=0, atol=1e-9)
    for measure in (neuron_contribution, neuron_weight):
        np.testing.assert_allclose(measure(renamed, N)[order], measure(inputs(parts), N), rtol=1e-9, atol=1e-12)


def test_kept_inputs_are_those_of_kept_neurons_and_those_that_always_stay() -> None:
    part = Drawn(np.random.default_rng(0), np.array([2, -1, 0, 0, 4, 1, 2]))
    assert part.inputs.kept(np.array([0, 2])).tolist() == [0, 1, 2, 3, 6]
