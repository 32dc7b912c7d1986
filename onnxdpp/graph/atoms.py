"""Neurons before they are known: atoms that turn out to be one neuron, atoms that must stay.

Every output of every projection begins as an atom of its own. What the graph does with them only ever makes fewer
choices free: two atoms that meet in one entry (a residual add, a gate) stay or go together, and an atom that somebody
else needs (a graph output, an operator that mixes) is pinned, with the reason.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.intp]

FIXED = -1
"""The label of an entry that belongs to no neuron and always stays."""


class Atoms:
    """Union-find over atoms, with pins."""

    def __init__(self) -> None:
        self._parent = np.empty(0, np.intp)
        self._pins: list[tuple[Labels, str]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Labels:
        """`count` new atoms."""
        new = np.arange(len(self._parent), len(self._parent) + count, dtype=np.intp)
        self._parent = np.concatenate([self._parent, new])
        return new

    def roots(self, labels: Labels) -> Labels:
        """The lowest atom of what each label has become; FIXED stays FIXED."""
        fixed = labels < 0
        found = np.where(fixed, 0, labels)
        if not len(self._parent):
            return labels
        while not np.array_equal(up := self._parent[found], found):
            found = up
        return np.where(fixed, FIXED, found)

    def unite(self, left: Labels, right: Labels, reason: str) -> None:
        """Make `left` and `right` the same, entry by entry; atoms that meet a fixed entry are pinned for `reason`."""
        free = (left >= 0) & (right >= 0)
        lonely = np.where(free, FIXED, np.maximum(left, right))
        self.pin(lonely, reason)
        left, right = left[free], right[free]
        while True:
            left, right = self.roots(left), self.roots(right)
            low, high = np.minimum(left, right), np.maximum(left, right)
            if np.array_equal(low, high):
                return
            np.minimum.at(self._parent, high, low)

    def pin(self, labels: Labels, reason: str) -> None:
        """Say that the neurons of `labels` must stay, and why; the first reason given is the one shown."""
        labels = np.unique(labels[labels >= 0])
        if len(labels):
            self._pins.append((labels, reason))

    def pins(self) -> dict[int, str]:
        """Root -> reason, for everything pinned."""
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for root in self.roots(labels).tolist():
                reasons.setdefault(root, reason)
        return reasons
