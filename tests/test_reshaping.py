"""Atoms, and what becomes of them in a Reshape: against a tensor with a label in every entry."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdpp.graph.atoms import FIXED, Atoms, Labels
from onnxdpp.graph.reshaping import LARGEST, moved


def atoms_of(count: int) -> Atoms:
    atoms = Atoms()
    atoms.fresh(count)
    return atoms


def labels(*values: int) -> Labels:
    return np.array(values, np.intp)


# Atoms


def test_fresh_atoms_are_all_different() -> None:
    atoms = atoms_of(3)
    assert atoms.fresh(2).tolist() == [3, 4]
    assert atoms.roots(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert len(atoms) == 5


def test_root_is_the_lowest_atom() -> None:
    atoms = atoms_of(6)
    atoms.unite(labels(5, 4), labels(3, 5), "")
    assert atoms.roots(np.arange(6)).tolist() == [0, 1, 2, 3, 3, 3]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14), st.integers(1, 4))
def test_united_atoms_are_the_connected_ones(pairs: list[tuple[int, int]], chunks: int) -> None:
    atoms = atoms_of(12)
    for part in np.array_split(np.array(pairs, np.intp).reshape(-1, 2), chunks):
        atoms.unite(part[:, 0], part[:, 1], "")
    groups = {item: {item} for item in range(12)}
    for left, right in pairs:
        joined = groups[left] | groups[right]
        groups.update(dict.fromkeys(joined, joined))
    assert atoms.roots(np.arange(12)).tolist() == [min(groups[item]) for item in range(12)]
    assert atoms.pins() == {}


def test_atom_that_meets_a_fixed_entry_is_pinned_for_the_reason() -> None:
    atoms = atoms_of(4)
    atoms.unite(labels(0, FIXED, 2, FIXED), labels(FIXED, 1, 3, FIXED), "why")
    assert atoms.pins() == {0: "why", 1: "why"}
    assert atoms.roots(labels(FIXED, 3)).tolist() == [FIXED, 2]


@pytest.mark.parametrize("pinned_first", [True, False])
def test_pin_holds_for_all_that_is_united_with_it(pinned_first: bool) -> None:
    atoms = atoms_of(4)
    if pinned_first:
        atoms.pin(labels(3), "why")
    atoms.unite(labels(1, 2), labels(2, 3), "")
    if not pinned_first:
        atoms.pin(labels(3), "why")
    assert atoms.pins() == {1: "why"}


def test_first_reason_is_the_one_shown() -> None:
    atoms = atoms_of(3)
    atoms.pin(labels(1, 1, FIXED), "first")
    atoms.pin(labels(0, 1), "second")
    assert atoms.pins() == {1: "first", 0: "second"}


# Reshape


def agree(atoms: Atoms, brute: Labels, found: Labels) -> bool:
    """Whether each entry has the neuron it is said to have, or one that stays where the other is fixed."""
    left, right = atoms.roots(brute.ravel()), atoms.roots(found.ravel())
    pinned = np.array([root < 0 or root in atoms.pins() for root in range(len(atoms))] + [True])
    return bool(((left == right) | ((left < 0) & pinned[right]) | ((right < 0) & pinned[left])).all())


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Sizes before and after, with equal products."""
    before = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 6]), min_size=1, max_size=4))
    rest, after = prod(before), []
    while rest > 1 and len(after) < 4:
        after.append(draw(st.sampled_from([size for size in range(1, rest + 1) if rest % size == 0])))
        rest //= after[-1]
    after.append(rest)
    if draw(st.booleans()):  # leading sizes stay, as in most models
        lead = draw(st.sampled_from([2, 3, 5]))
        before, after = [lead, *before], [lead, *after]
    return before, after


def drawn_labels(data: st.DataObject, n: int) -> Labels:
    kinds = {"own": st.just(list(range(n))), "any": st.lists(st.integers(FIXED, n - 1), min_size=n, max_size=n)}
    return np.array(data.draw(kinds[data.draw(st.sampled_from(sorted(kinds)))]), np.intp)


@settings(max_examples=400)
@given(reshapes(), st.data())
def test_reshape_of_known_sizes_is_that_of_a_tensor_of_labels(
    sizes: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    before, after = sizes
    axis = data.draw(st.integers(0, len(before) - 1))
    own, atoms = drawn_labels(data, before[axis]), atoms_of(before[axis])
    result = moved(before, axis, own, after, atoms, "it")
    if isinstance(result, str):  # an axis of one neuron may have nothing to come to lie in
        assert before[axis] == 1
        return
    place, found = result
    assert found.shape == (after[place],)
    brute = np.broadcast_to(own.reshape([-1 if a == axis else 1 for a in range(len(before))]), before).reshape(after)
    spread = np.broadcast_to(found.reshape([-1 if a == place else 1 for a in range(len(after))]), after)
    assert agree(atoms, brute, spread)


@settings(max_examples=400)
@given(reshapes(), st.data())
def test_reshape_of_sizes_in_part_unknown_is_right_or_refused(
    sizes: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    before, after = sizes
    axis = data.draw(st.integers(0, len(before) - 1))
    own, atoms = drawn_labels(data, before[axis]), atoms_of(before[axis])

    def veiled(part: list[int]) -> list[object]:
        kinds = data.draw(st.lists(st.sampled_from("int name none".split()), min_size=len(part), max_size=len(part)))
        return [{"int": size, "name": f"of {size}", "none": None}[kind] for size, kind in zip(part, kinds, strict=True)]

    result = moved(veiled(before), axis, own, veiled(after), atoms, "it")
    if isinstance(result, str):
        assert result == "moves its neurons in a way that is not known before it runs"
        return
    place, found = result
    assert found.shape == (after[place],)
    brute = np.broadcast_to(own.reshape([-1 if a == axis else 1 for a in range(len(before))]), before).reshape(after)
    spread = np.broadcast_to(found.reshape([-1 if a == place else 1 for a in range(len(after))]), after)
    assert agree(atoms, brute, spread)


@pytest.mark.parametrize(
    ("before", "axis", "after", "place", "expected"),
    [
        (["N", 3, 4], 1, ["N", 12], 1, np.repeat([0, 1, 2], 4)),
        (["N", 3, 4], 2, ["N", 12], 1, np.tile([0, 1, 2, 3], 3)),
        (["N", 3, 4], 1, ["N", None], 1, np.repeat([0, 1, 2], 4)),
        ([None, 3, 4], 1, [None, 12], 1, np.repeat([0, 1, 2], 4)),
        (["N", 3, "H", "W"], 1, ["N", 3, None], 1, np.arange(3)),
        (["N", "T", 5], 2, [None, 5], 1, np.arange(5)),
        (["N", 6, 1, 1], 1, ["N", 6], 1, np.arange(6)),
        (["N", 6], 1, ["N", 6, 1, 1], 1, np.arange(6)),
        (["N", 2, 3, 4], 2, ["N", 6, 4], 1, np.tile([0, 1, 2], 2)),
    ],
)
def test_reshape_that_keeps_all_neurons(
    before: list[object], axis: int, after: list[object], place: int, expected: Labels
) -> None:
    own = labels(*range(int(expected.max()) + 1))
    atoms = atoms_of(len(own))
    result = moved(before, axis, own, after, atoms, "it")
    assert not isinstance(result, str)
    assert result[0] == place
    np.testing.assert_array_equal(result[1], expected)
    np.testing.assert_array_equal(atoms.roots(own), own)


def test_axis_that_is_divided_ties_what_lies_in_one_entry_of_the_outer_part() -> None:
    atoms = atoms_of(6)
    result = moved(["N", 6, "H"], 1, np.arange(6), ["N", 3, 2, "H"], atoms, "it")
    assert not isinstance(result, str)
    assert result[0] == 1
    assert atoms.roots(np.arange(6)).tolist() == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("before", "axis", "after"),
    [
        (["N", 6], 1, [None, 3]),
        (["N", "T", 5], 2, ["N", None]),
        (["N", 5, "H", "W"], 1, ["N", None]),
        ([2, LARGEST], 0, [LARGEST, 2]),
    ],
)
def test_reshape_that_is_not_known(before: list[object], axis: int, after: list[object]) -> None:
    size = before[axis]
    assert isinstance(size, int)
    result = moved(before, axis, np.arange(size), after, atoms_of(size), "it")
    assert result == "moves its neurons in a way that is not known before it runs"
