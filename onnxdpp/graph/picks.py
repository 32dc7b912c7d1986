"""Which rows of the data are used: so many evenly spaced, every fifth, or all but those; one pick upon the other.

A pick maps the numbers 0, 1, 2 ... of the rows that it takes to their numbers among more rows, in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 5
"""Every so many rows, one may be held out."""

Numbers = NDArray[np.int64]


class Pick(Protocol):
    """Some rows among more."""

    @property
    def count(self) -> int:
        """How many rows are taken."""
        ...

    def rows(self, numbers: Numbers) -> Numbers:
        """Where these of the rows taken are."""
        ...

    def before(self, border: int) -> int:
        """How many of the rows below `border` are taken."""
        ...


@dataclass(frozen=True)
class Evenly:
    """`count` rows of `among`: row i is ``i * among // count``."""

    count: int
    among: int

    def rows(self, numbers: Numbers) -> Numbers:
        """``i * among // count``, without the large product."""
        quotient, remainder = divmod(self.among, self.count)
        return numbers * quotient + numbers * remainder // self.count

    def before(self, border: int) -> int:
        """The first row at or after a border is the quotient rounded up."""
        return -(-border * self.count // self.among)


@dataclass(frozen=True)
class Fifth:
    """Every fifth row of `among`."""

    among: int

    @property
    def count(self) -> int:
        """The last few rows may hold none."""
        return self.among // HELD_OUT

    def rows(self, numbers: Numbers) -> Numbers:
        """4, 9, 14 ..."""
        return numbers * HELD_OUT + HELD_OUT - 1

    def before(self, border: int) -> int:
        """As many as whole fives."""
        return border // HELD_OUT


@dataclass(frozen=True)
class OtherFour:
    """All rows of `among` but every fifth."""

    among: int

    @property
    def count(self) -> int:
        """All, less what `Fifth` takes."""
        return self.among - self.among // HELD_OUT

    def rows(self, numbers: Numbers) -> Numbers:
        """0, 1, 2, 3, 5 ..."""
        return numbers + numbers // (HELD_OUT - 1)

    def before(self, border: int) -> int:
        """All, less what `Fifth` takes."""
        return border - border // HELD_OUT


def all_of(pick: Pick) -> Numbers:
    """Where all rows that a pick takes are."""
    return pick.rows(np.arange(pick.count, dtype=np.int64))


def places(picks: Sequence[Pick], numbers: Numbers) -> Numbers:
    """Where these rows are in the data, each pick being among the rows of the one before."""
    for pick in reversed(picks):
        numbers = pick.rows(numbers)
    return numbers


def border_after(picks: Sequence[Pick], border: int) -> int:
    """How many of the rows below a border of the data are left after all picks."""
    for pick in picks:
        border = pick.before(border)
    return border
