"""How long two models take, side by side, on a machine that does other things too.

The runs of A and B take turns, in the order A B B A and then B A A B, so that what changes steadily (a clock that slows
down, a cache that warms up) meets both alike. A part of this is as short as the clock allows, `BURST` seconds, so that
most are not interrupted; those that were are left out: all that took more than `UNDISTURBED` times the quickest tenth
of the same model's. The latency is the median of the others, the ratio that of the two medians. What differs from
session to session (where the weights happen to lie) is met by `PAIRS` pairs of sessions, made in alternating order.

Sessions have a fixed number of threads, which do not spin: with spinning, and other work on the machine, a model
against itself was seen at ratios from 0.69 to 1.41. Measured without, on two cores with four times as much other work:
the median over rounds of the ratio was off by up to 0.26 (batches of 1.2 ms), the ratio of these medians by 0.017 at
most, in 40 evaluations on one thread and on two.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Run = Callable[[], object]

PAIRS = 4
BURST = 1e-4
WARM_UP, SECONDS = 0.05, 0.6
"""How long each pair of sessions is warmed up and measured."""
LEAST, MOST = 3, 1000
"""Rounds of a pair between which that decides."""
UNDISTURBED = 2.0


@dataclass(frozen=True)
class Latency:
    """Of one batch.

    Attributes
    ----------
    rows : int
        Of the batch.
    before, after : float
        Median seconds of a run of the original and of the other model, disturbed ones aside.
    ratio : float
        after / before.
    disturbed : float
        Share of measurements that are left out.
    rounds : int
    """

    rows: int
    before: float
    after: float
    ratio: float
    disturbed: float
    rounds: int


def interleaved(
    pair: Callable[[bool], tuple[Run, Run]],
    rows: int,
    progress: Callable[[float], None] = lambda fraction: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time two models in turn.

    Parameters
    ----------
    pair : callable (bool) -> (run, run)
        Makes a session of each model, the second one first if asked to; returns what runs the original and the other.
    rows : int
        Of the batch that they run.
    progress : callable
        Told the fraction that is done.
    clock : callable
        Seconds.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(PAIRS):
        _measure(pair(number % 2 == 1), found, clock)
        progress((number + 1) / PAIRS)
    times = np.array(found)
    kept = [part[part <= UNDISTURBED * np.quantile(part, 0.1)] for part in times]
    before, after = (float(np.median(part)) for part in kept)
    disturbed = 1 - sum(map(len, kept)) / times.size
    return Latency(rows, before, after, after / before, disturbed, times.shape[1] // 2)


def _measure(runs: tuple[Run, Run], found: tuple[list[float], list[float]], clock: Callable[[], float]) -> None:
    """Add seconds for one run of each: two measurements of both in every round."""

    def timed(which: int, times: int) -> float:
        run = runs[which]
        began = clock()
        for _ in range(times):
            run()
        return (clock() - began) / times

    quickest, number, end = math.inf, 0, clock() + WARM_UP
    while number < 1 or (number < MOST and clock() < end):
        quickest = min(quickest, timed(0, 1), timed(1, 1))
        number += 1
    times = max(1, round(BURST / quickest)) if quickest > 0 else 1
    end = clock() + SECONDS
    number = 0
    while number < LEAST or (number < MOST and clock() < end):
        for which in (0, 1, 1, 0) if number % 2 == 0 else (1, 0, 0, 1):
            found[which].append(timed(which, times))
        number += 1
