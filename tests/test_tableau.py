"""Least-error selection, by hand: every cost and gain is the difference of two refits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence

from onnxdpp.algebra.contest import CLOSE, FINALISTS, PLAIN, Entry, edge_contest, finalists, neuron_contest
from onnxdpp.algebra.edge_selection import eliminate_edges, pursue_edges
from onnxdpp.algebra.moments import Accumulator, Moments
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.refit import RIDGE, SCARCE_RIDGE, refit_edges, refit_neurons, ridge, squared_error
from onnxdpp.algebra.selection import Rule, choose_edges, choose_neurons
from onnxdpp.algebra.tableau import GRID, Tableau, eliminate, error_curve, pursue, swapped


def moments(rows: int, n: int, m: int, seed: int, *, rank: int | None = None) -> Moments:
    """Of rectified inputs with common causes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, rank or n)) @ rng.standard_normal((rank or n, n)) + 0.2 * rng.standard_normal(
        (rows, n)
    )
    sums = Accumulator(rng.standard_normal((n, m)), paired=False)
    sums.update(np.maximum(x, 0))
    return sums.moments()


def error(observed: list[Inputs], keep: list[int] | np.ndarray, form: str = "affine") -> float:
    """Of the refit onto the neurons `keep`, all consumers together."""
    keep = np.sort(np.asarray(keep, np.intp))
    return sum(
        float(squared_error(part.moments, refit_neurons(part.moments, part.kept(keep), form)).sum())
        for part in observed
    )


def cases(seed: int) -> dict[str, tuple[list[Inputs], int]]:
    """Observed and number of neurons: one consumer, blocks of three inputs, two consumers, inputs that stay."""
    plain = moments(400, 12, 5, seed, rank=6)
    other = moments(300, 12, 3, seed + 1, rank=7)
    ragged = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 3, 1])
    return {
        "plain": ([Inputs(plain, np.arange(12))], 12),
        "blocks": ([Inputs(plain, np.repeat(np.arange(4), 3))], 4),
        "ragged": ([Inputs(plain, ragged)], 6),
        "two": ([Inputs(plain, np.arange(12)), Inputs(other, np.arange(12)[::-1].copy())], 12),
        "fixed": ([Inputs(plain, np.array([-1, 0, 1, 2, -1, 3, 4, 5, 6, 7, 8, 9]))], 10),
    }


@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("case", ["plain", "blocks", "ragged", "two", "fixed"])
def test_costs_and_gains_are_differences_of_refits(case: str, form: str) -> None:
    observed, n = cases(3)[case]
    keep = np.arange(0, n, 2)
    table = Tableau(observed, n, form, keep)
    here = error(observed, keep, form)
    scale = error(observed, [0], form)
    assert table.error == pytest.approx(here, abs=1e-3 * scale)
    costs, gains = table.costs(), table.gains()
    for neuron in range(n):
        if neuron in keep:
            assert costs[neuron] == pytest.approx(
                error(observed, np.setdiff1d(keep, neuron), form) - here, abs=1e-3 * scale
            )
            assert gains[neuron] == -np.inf
        else:
            assert gains[neuron] == pytest.approx(here - error(observed, [*keep, neuron], form), abs=1e-3 * scale)
            assert costs[neuron] == np.inf


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_sweeping_in_and_out_again_leaves_the_tableau_as_it_was(seed: int, path: list[int]) -> None:
    """Any walk over sets ends where a tableau made for the last set begins."""
    observed, n = cases(seed)["fixed"]
    table = Tableau(observed, n, "affine", np.arange(n))
    for neuron in path:
        if table.inside[neuron]:
            table.drop(neuron, float(table.costs()[neuron]) if table.inside.sum() > 1 else 0.0)
        else:
            table.take(neuron, float(table.gains()[neuron]))
    if not table.inside.any():
        return
    fresh = Tableau(observed, n, "affine", np.flatnonzero(table.inside))
    scale = max(1e-9, error(observed, [0]))
    np.testing.assert_allclose(table.gains(), fresh.gains(), atol=1e-5 * scale)


@pytest.mark.parametrize("case", ["plain", "blocks", "two"])
def test_elimination_drops_the_cheapest_each_time(case: str) -> None:
    observed, n = cases(7)[case]
    order, curve = eliminate(observed, n, "affine")
    left = list(range(n))
    for step in range(n - 1):
        by_hand = {neuron: error(observed, [other for other in left if other != neuron]) for neuron in left}
        dropped = int(order[n - 1 - step])
        assert by_hand[dropped] == pytest.approx(min(by_hand.values()), rel=1e-4)
        left.remove(dropped)
        assert curve[len(left)] == pytest.approx(by_hand[dropped], rel=1e-3)
    assert (np.diff(curve[1:]) <= 1e-9 * curve[1]).all()


def test_pursuit_takes_what_gains_most_each_time() -> None:
    observed, n = cases(9)["two"]
    order, curve = pursue(observed, n, "affine", most=6)
    for step in range(1, 7):
        assert curve[step] == pytest.approx(error(observed, order[:step]), rel=1e-3)
        others = [
            error(observed, [*order[: step - 1], neuron]) for neuron in range(n) if neuron not in order[: step - 1]
        ]
        assert curve[step] == pytest.approx(min(others), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11))
def test_swaps_never_make_it_worse_and_end_where_none_helps(seed: int, k: int) -> None:
    observed, n = cases(seed)["two"]
    start = np.sort(np.random.default_rng(seed).choice(n, k, replace=False))
    end = swapped(observed, n, "affine", start, most=100)
    assert len(end) == k
    assert error(observed, end) <= error(observed, start) * (1 + 1e-6)
    assert np.array_equal(swapped(observed, n, "affine", end, most=100), end)


def penalised(part: Moments, keep: list[int]) -> float:
    """The least of ``E‖Ŷ - Y‖² + λ ‖W - W0‖²``, by hand, weights outside of `keep` being zero."""
    gram, cross, old = part.covariance, part.cross_covariance, part.weights
    strength = ridge(part, len(gram), "affine") * float(np.trace(gram)) / len(gram)
    inside = np.ix_(keep, keep)
    new = np.zeros_like(old)
    new[keep] = np.linalg.solve(gram[inside] + strength * np.eye(len(keep)), cross[keep] + strength * old[keep])
    missing = float(part.variance_y.sum() - 2 * (new * cross).sum() + (new * (gram @ new)).sum())
    return missing + strength * float(((new - old) ** 2).sum())


@pytest.mark.parametrize("case", ["plain", "blocks", "two", "fixed"])
def test_error_curve_is_that_of_the_refit_with_what_elimination_leaves(case: str) -> None:
    observed, n = cases(5)[case]
    order, _ = eliminate(observed, n, "affine")
    curve = error_curve(observed, n, "affine", least=2)
    errors = [error(observed, order[:k]) for k in range(2, n)]
    assert curve[2:n] == pytest.approx(np.minimum.accumulate(errors), rel=1e-3, abs=0)
    assert curve[n] < 1e-6 * curve[n - 1]
    assert curve[:2].tolist() == [curve[2]] * 2


def test_error_curve_of_few_rows_is_that_of_the_ridge_of_what_is_left() -> None:
    """Elimination has the strong one of all neurons throughout; half of them have the plain one."""
    observed = [Inputs(moments(30, 20, 4, 6), np.arange(20))]
    order, known = eliminate(observed, 20, "affine")
    curve = error_curve(observed, 20, "affine")
    errors = np.minimum.accumulate([error(observed, order[:k]) for k in range(1, 21)])
    assert curve[1:] == pytest.approx(errors, rel=1e-12, abs=0)
    assert curve[12] < 0.95 * known[12]


def test_error_curve_of_a_wide_layer_is_right_where_it_is_refitted_and_near_between() -> None:
    observed = [Inputs(moments(120, 150, 6, 7), np.arange(150))]
    order, _ = eliminate(observed, 150, "affine")
    curve = error_curve(observed, 150, "affine")
    errors = np.minimum.accumulate([error(observed, order[:k]) for k in range(1, 151)])
    assert (np.diff(curve) <= 0).all()
    assert np.count_nonzero(np.isclose(curve[1:], errors, rtol=1e-12, atol=0)) >= GRID - 2
    assert curve[1:] == pytest.approx(errors, rel=0.5, abs=0)


@pytest.mark.parametrize("rows", [30, 400])
def test_error_counts_the_ridge(rows: int) -> None:
    """So that few rows, and a strong ridge, do not make errors of nothing."""
    part = moments(rows, 20, 5, 4)
    keep, curve = eliminate([Inputs(part, np.arange(20))], 20, "affine")
    for k in (3, 10, 19):
        assert curve[k] == pytest.approx(penalised(part, np.sort(keep[:k]).tolist()), rel=1e-6)
        assert Tableau([Inputs(part, np.arange(20))], 20, "affine", keep[:k]).error == pytest.approx(curve[k], rel=1e-6)
    assert curve[20] <= 1e-9 * curve[19]


@pytest.mark.parametrize("seed", range(5))
def test_equal_neurons_are_told_apart_by_number_however_little_they_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums = Accumulator(np.tile(rng.standard_normal((40, 3)), (2, 1)), paired=False)
    sums.update(np.tile(np.maximum(rng.standard_normal((5000, 40)), 0), 2))
    order, _ = eliminate([Inputs(sums.moments(), np.arange(80))], 80, "affine", least=40)
    assert np.sort(order[:40]).tolist() == list(range(40))


def test_gram_that_rounding_makes_indefinite_takes_a_larger_ridge() -> None:
    """Of a large mean hardly anything is left that varies."""
    part = moments(200, 12, 3, 5)
    values, vectors = np.linalg.eigh(part.covariance)
    below = values[0] + 1e-6 * values.sum()  # more than the ridge
    broken = replace(part, gram=part.gram - below * np.outer(vectors[:, 0], vectors[:, 0]))
    keep, curve = eliminate([Inputs(broken, np.arange(12))], 12, "affine", least=4)
    assert sorted(keep.tolist()) == list(range(12))
    assert np.isfinite(curve[4:]).all()


def test_no_more_swaps_than_allowed() -> None:
    observed, n = cases(5)["plain"]
    start = np.arange(5)
    once = swapped(observed, n, "affine", start, most=1)
    assert len(np.setdiff1d(once, start)) <= 1
    assert np.array_equal(swapped(observed, n, "affine", start, most=0), start)


def test_the_last_of_a_section_is_never_dropped() -> None:
    observed, n = cases(5)["plain"]
    sections = np.array([1, 2] + [0] * 10)
    order, _ = eliminate(observed, n, "affine", least=3, sections=sections)
    assert {0, 1} <= set(order[:3].tolist())


@pytest.mark.parametrize("method", ["obs", "omp"])
def test_permuting_neurons_permutes_the_choice(method: str) -> None:
    (part,), n = cases(11)["plain"]
    perm = np.random.default_rng(0).permutation(n)
    old = part.moments
    sums = Moments(
        old.count,
        old.weights[perm],
        old.gram[np.ix_(perm, perm)],
        old.mean_x[perm],
        old.cross[perm],
        old.mean_y,
        old.power_y,
    )
    rule = Rule(method)
    first = choose_neurons([part], n, 5, rule, None, SeedSequence(0))
    second = choose_neurons([Inputs(sums, np.arange(n))], n, 5, rule, None, SeedSequence(0))
    assert set(perm[second].tolist()) == set(first.tolist())


# Edges


def test_edges_by_pursuit_are_those_of_pursuit_for_each_output_alone() -> None:
    sums = moments(500, 20, 6, 2, rank=8)
    with ThreadPoolExecutor(2) as executor:
        kept = pursue_edges(sums, 7, "affine", executor)
    for j in range(6):
        own = Moments(
            sums.count, sums.weights[:, j : j + 1], sums.gram, sums.mean_x, sums.cross[:, j : j + 1],
            sums.mean_y[j : j + 1], sums.power_y[j : j + 1],
        )  # fmt: skip
        order, _ = pursue([Inputs(own, np.arange(20))], 20, "affine", most=7)
        assert kept[:, j].tolist() == order.tolist()


@pytest.mark.parametrize("method", ["obs", "omp"])
def test_least_error_edges_err_less_than_the_largest(method: str) -> None:
    sums = moments(800, 40, 8, 4, rank=10)
    losses = {}
    with ThreadPoolExecutor(2) as executor:
        for name in (method, "importance", "random"):
            kept = choose_edges(sums, 8, Rule(name), None, SeedSequence(1), executor)
            assert kept.shape == (8, 8)
            losses[name] = squared_error(sums, refit_edges(sums, kept, "affine", executor)).sum()
    assert losses[method] < losses["importance"]
    assert losses[method] < losses["random"]


def test_backward_edges_without_budget_share_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdpp.algebra import edge_selection

    sums = moments(800, 40, 8, 4, rank=10)
    with ThreadPoolExecutor(2) as executor:
        exact = eliminate_edges(sums, 8, "affine", executor)
        monkeypatch.setattr(edge_selection, "FLOPS", 0.0)
        shared = eliminate_edges(sums, 8, "affine", executor)
        inverse = np.linalg.inv(sums.covariance + 1e-6 * np.trace(sums.covariance) / 40 * np.eye(40))
        scores = sums.weights**2 / np.diagonal(inverse)[:, None]
        errors = [squared_error(sums, refit_edges(sums, kept, "affine", executor)).sum() for kept in (exact, shared)]
    assert np.array_equal(np.sort(shared, axis=0), np.sort(np.argsort(-scores, axis=0)[:8], axis=0))
    assert errors[0] < errors[1]


# The contest


def halves(seed: int, rows: int = 600, *, between: bool = False) -> tuple[list[Inputs], list[Inputs]]:
    rng = np.random.default_rng(seed)
    mix, weights = rng.standard_normal((6, 30)), rng.standard_normal((30, 4))
    parts = []
    for count in (rows, rows // 4):
        sums = Accumulator(weights, paired=False, between=between)
        sums.update(np.maximum(rng.standard_normal((count, 6)) @ mix + 0.3 * rng.standard_normal((count, 30)), 0))
        parts.append([Inputs(sums.moments(), np.arange(30))])
    return parts[0], parts[1]


def test_winner_has_the_least_loss_on_rows_held_out() -> None:
    fit, held = halves(1)
    entries = neuron_contest(fit, held, 30, 6, Rule(), SeedSequence(0), None)
    losses = [entry.loss for entry in entries]
    assert losses == sorted(losses)
    assert {entry.method for entry in entries} == {"dpp", "obs", "omp", "importance"}
    for entry in entries:
        found = float(np.sqrt(squared_error(held[0].moments, entry.fits[0]).sum() / held[0].moments.variance_y.sum()))
        assert entry.loss == pytest.approx(found, rel=1e-9)
        assert entry.fits[0].weights[np.setdiff1d(np.arange(30), entry.keep)].any() == np.False_


def test_few_rows_ask_for_a_stronger_ridge() -> None:
    """With hardly more rows than neurons the plain ridge follows noise, and the rows held out say so."""
    fit, held = halves(2, rows=40)
    many, held_many = halves(2, rows=4000)
    few = neuron_contest(fit, held, 30, 15, Rule(), SeedSequence(0), None)[0]
    enough = neuron_contest(many, held_many, 30, 15, Rule(), SeedSequence(0), None)[0]
    assert few.strength > enough.strength


def test_edges_hold_a_contest_too() -> None:
    fit, held = halves(3)
    with ThreadPoolExecutor(2) as executor:
        entries = edge_contest(fit, held, 6, Rule(), SeedSequence(0), executor)
    assert [entry.loss for entry in entries] == sorted(entry.loss for entry in entries)
    assert {entry.method for entry in entries} == {"dpp", "obs", "omp", "fluctuation", "importance"}
    with ThreadPoolExecutor(2) as executor:
        many = edge_contest(fit, held, 7, Rule(), SeedSequence(0), executor)
        patterned = edge_contest(fit, held, 15, Rule(pattern=(2, 4)), SeedSequence(0), executor)
    assert {entry.method for entry in many} == {"dpp", "obs", "fluctuation", "importance"}
    assert {entry.method for entry in patterned} == {"dpp", "fluctuation", "importance"}


@pytest.mark.parametrize(("rows", "strength"), [(600, RIDGE["affine"]), (10, SCARCE_RIDGE)])
def test_edges_have_the_plain_ridge(rows: int, strength: float) -> None:
    fit, held = halves(3, rows=rows)
    with ThreadPoolExecutor(1) as executor:
        for entry in edge_contest(fit, held, 6, Rule(), SeedSequence(0), executor):
            assert entry.strength == strength
            (kept,), (found,) = entry.keep, entry.fits
            np.testing.assert_array_equal(found.weights, refit_edges(fit[0].moments, kept, "affine", executor).weights)


ROOT = np.diag([1.0, 0.1, 0.01, 0.001])


def felt_contest(seed: int) -> tuple[list[Entry], list[Inputs], list[Inputs]]:
    """A contest in which errors weigh by ROOT, and the rows to fit as they are and weighted."""
    fit, held = halves(seed, between=True)
    felt, judged = ([part.through(ROOT) for part in parts] for parts in (fit, held))
    return neuron_contest(felt, judged, 30, 6, Rule(), SeedSequence(0), None, fit), fit, felt


def test_plain_candidates_join_where_errors_are_weighted() -> None:
    entries, fit, felt = felt_contest(1)
    assert sorted((entry.method, entry.kernel) for entry in entries if not entry.weighted) == sorted(PLAIN)
    assert {entry.method for entry in entries if entry.weighted} == {"dpp", "obs", "omp", "importance"}
    for entry in entries:
        own = choose_neurons(
            felt if entry.weighted else fit, 30, 6, Rule(entry.method, entry.kernel, swaps=100), entry.beta,
            SeedSequence(0), None,
        )  # fmt: skip
        assert np.array_equal(entry.keep, own)


def test_plain_and_weighted_candidates_are_compared_by_weighted_errors() -> None:
    entries, _, _ = felt_contest(1)
    held = halves(1, between=True)[1][0].through(ROOT).moments
    assert [entry.loss for entry in entries] == sorted(entry.loss for entry in entries)
    for entry in entries:
        found = float(np.sqrt(squared_error(held, entry.fits[0]).sum() / held.variance_y.sum()))
        assert entry.loss == pytest.approx(found, rel=1e-9)


def test_no_plain_candidates_where_all_errors_count_the_same() -> None:
    fit, held = halves(1)
    assert not any(entry.weighted for entry in neuron_contest(fit, held, 30, 6, Rule(), SeedSequence(0), None))


def entry(loss: float | None, keep: list[int] | list[list[int]], *, weighted: bool = False) -> Entry:
    chosen = [np.array(part) for part in keep] if isinstance(keep[0], list) else np.array(keep)
    return Entry("obs", "rbf", None, 0.0, loss, chosen, [], weighted)


LOSSES = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.1, 0.105, 0.11, 0.111]))


@given(st.lists(st.tuples(LOSSES, st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_finalists_are_close_choices_of_their_own_and_the_plain_ones(
    drawn: list[tuple[float | None, int, bool]],
) -> None:
    entries = [entry(loss, [keep, 9], weighted=weighted) for loss, keep, weighted in drawn]
    entries.sort(key=lambda part: np.inf if part.loss is None else part.loss)
    last = finalists(entries)
    best, some_weigh = entries[0], any(part.weighted for part in entries)
    assert last[0] is best
    keeps = [tuple(part.keep) for part in last]
    assert len(set(keeps)) == len(keeps)
    assert [part for part in entries if any(part is other for other in last)] == last
    for part in last:
        close = part.loss == best.loss or (None not in (part.loss, best.loss) and part.loss <= CLOSE * best.loss)
        assert close or (some_weigh and not part.weighted)
    if some_weigh:
        assert {tuple(part.keep) for part in entries if not part.weighted} <= set(keeps)
        assert len([part for part in last if part.weighted]) <= FINALISTS
    else:
        assert len(last) <= FINALISTS


def test_no_more_finalists_than_allowed() -> None:
    entries = [entry(0.1 + 0.0001 * number, [number]) for number in range(9)]
    assert finalists(entries) == entries[:FINALISTS]


def test_plain_choices_are_finalists_however_far_behind() -> None:
    near = [entry(0.1 + 0.0001 * number, [number], weighted=True) for number in range(5)]
    far = [entry(0.9, [7]), entry(None, [8]), entry(None, [0])]
    assert finalists([*near, *far]) == [*near[:FINALISTS], *far[:2]]


def test_edges_are_told_apart_by_all_values_that_are_read() -> None:
    same = [entry(0.1, [[0, 1], [2]]), entry(0.1, [[0, 1], [3]]), entry(0.1, [[0, 1], [2]])]
    assert finalists(same) == same[:2]
