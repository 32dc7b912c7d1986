"""Numbers to coordinates: what small charts are made of. Paths and ticks in the units of a drawing, no markup.

The template draws them, in the colours of the page, so that they follow its light and its dark.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 38
POINTS = 240
BINS = 48
SHADES = 48
MOST_DECADES = 6


@dataclass(frozen=True)
class Scale:
    """Values along one side of a drawing.

    Attributes
    ----------
    low, high : float
        The values at its ends.
    start, stop : float
        Where these ends are.
    log : bool
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is; at an end what lies beyond it."""
        low, high, value = (math.log10(max(x, 1e-300)) if self.log else x for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + min(1.0, max(0.0, share)) * (self.stop - self.start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels of a handful of round values."""
        values = _decades(self.low, self.high) if self.log else _steps(self.low, self.high)
        return [
            (self.at(value), f"{value:,.6g}" if value >= 1e-3 or value == 0 else f"{value:.0e}") for value in values
        ]


@dataclass(frozen=True)
class Point:
    """A place that is marked, with what it says, in short and in full."""

    x: float
    y: float
    label: str
    title: str


@dataclass(frozen=True)
class Curve:
    """A line over two scales.

    Attributes
    ----------
    line, area : str
        Paths: the line itself, and what lies below it.
    chosen, bare : Point or None
        What was chosen; and the same without its refit.
    n : int
        The last place along x.
    ends : (float, float) or None
        The values at the bottom and at the top of a log scale.
    """

    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    line: str
    area: str
    chosen: Point | None = None
    bare: Point | None = None
    n: int = 0
    ends: tuple[float, float] | None = None


def loss_curve(curve: Matrix, least: int, kept: int, loss: float | None, bare: float | None) -> Curve:
    """The loss for every number of neurons kept, on a log scale, and the point chosen."""
    n = len(curve) - 1
    counts = np.unique(np.linspace(least, n, POINTS).astype(int))
    high = max(x for x in (float(curve[least]), loss, bare) if x is not None)
    seen = [x for x in (*curve[counts].tolist(), loss) if x is not None and x > 0]
    low = max(min(seen, default=high), high * 10.0**-MOST_DECADES)
    x, y = Scale(0, n, LEFT, WIDTH - RIGHT), _loss_scale(low, high)
    line = _path((x.at(float(k)), y.at(float(curve[k]))) for k in counts)
    ends = f"V{HEIGHT - BOTTOM}H{x.at(float(least))}Z"

    def point(value: float | None, when: str) -> Point | None:
        if value is None:
            return None
        said = f"{value:.3g}"
        return Point(x.at(float(kept)), y.at(value), said, f"{kept:,} of {n:,} kept{when}: loss {said}")

    points = point(loss, ""), point(bare, ", before the refit")
    return Curve(x.ticks(), y.ticks(), line, line + ends, *points, n, (y.low, y.high))


def readers_curve(readers: NDArray[np.intp]) -> Curve:
    """How many outputs read each input, the most-read first."""
    n = len(readers)
    x, y = Scale(0, n, LEFT, WIDTH - RIGHT), Scale(0, max(1.0, float(readers[0])), HEIGHT - BOTTOM, TOP)
    chosen = np.unique(np.linspace(0, n - 1, POINTS).astype(int))
    line = _path((x.at(float(i)), y.at(float(readers[i]))) for i in chosen)
    return Curve(x.ticks(), y.ticks(), line, f"{line}V{HEIGHT - BOTTOM}H{LEFT}Z")


@dataclass(frozen=True)
class Histogram:
    """Bars over a log scale.

    Attributes
    ----------
    bars : list of (x, y, width, height, title)
    marks : list of (x, label)
        Of quantiles.
    said : str
        What they are, in numbers.
    still : int
        Rows that do not move at all, which have no place on the scale.
    """

    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    bars: list[tuple[float, float, float, float, str]]
    marks: list[tuple[float, str]]
    said: str
    still: int


def histogram(values: NDArray[np.float32]) -> Histogram | None:
    """How many values lie where; None where all are zero."""
    moved = values[values > 0].astype(np.float64)
    if not len(moved):
        return None
    high = float(moved.max())
    low = max(float(moved.min()), high * 10.0**-MOST_DECADES)
    first, last = (low, high) if high > 1.5 * low else (low / 1.25, high * 1.25)
    edges = np.geomspace(first, last, BINS + 1)
    counts, _ = np.histogram(np.clip(moved, first, last), edges)
    x = Scale(first, last, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(0, float(counts.max()), HEIGHT - BOTTOM, TOP + 12)
    bars = []
    for count, start, stop in zip(counts.tolist(), edges, edges[1:], strict=False):
        if count:
            left, right, top = x.at(float(start)), x.at(float(stop)), y.at(float(count))
            title = f"{count:,} rows from {start:.3g} to {stop:.3g}"
            bars.append((left, top, round(right - left - 0.8, 2), round(HEIGHT - BOTTOM - top, 2), title))
    median, most = (float(np.quantile(values, share)) for share in (0.5, 0.99))
    said = (
        f"Half of the rows move by less than {median:.3g}, 99 % by less than {most:.3g}, none by more than {high:.3g}."
    )
    marks = [(x.at(median), "median"), (x.at(most), "99 %")]
    return Histogram(x.ticks(), y.ticks(), bars, marks, said, int(len(values) - len(moved)))


@dataclass(frozen=True)
class Heatmap:
    """A square picture of numbers from 0 to 1.

    Attributes
    ----------
    image : str
        A PNG as a data URI; each shade is one colour, more or less opaque, so that the page shines through.
    size : int
        Items along each side.
    kept : list of (start, length)
        Runs of items that stay.
    """

    image: str
    size: int
    kept: list[tuple[int, int]]


def heatmap(cells: Matrix, kept: NDArray[np.bool_], colour: tuple[int, int, int]) -> Heatmap:
    """A picture of `cells`, and the runs of `kept` along its sides."""
    shades = np.rint(np.clip(cells, 0, 1) * (SHADES - 1)).astype(np.uint8)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
    runs = [(int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2)]
    opacity = np.rint(255 * np.linspace(0, 1, SHADES) ** 1.5).astype(np.uint8)
    return Heatmap(_png(shades, colour, opacity), len(kept), runs)


def _png(shades: NDArray[np.uint8], colour: tuple[int, int, int], opacity: NDArray[np.uint8]) -> str:
    """An image of one colour whose opacity is that of each pixel's shade (PNG, colour type 3)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = shades.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), shades]).tobytes()
    encoded = b"".join([
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", bytes(colour) * len(opacity)),
        chunk(b"tRNS", opacity.tobytes()),
        chunk(b"IDAT", zlib.compress(rows, 9)),
        chunk(b"IEND", b""),
    ])  # fmt: skip
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


def _loss_scale(low: float, high: float) -> Scale:
    """A log scale from bottom to top, whose ends are 1, 2 or 5 times a power of ten; a decade at least."""
    if high <= 0:
        return Scale(0.1, 1, HEIGHT - BOTTOM, TOP, log=True)
    below, above = (10.0 ** math.floor(math.log10(value)) for value in (low, high))
    least = max(factor * below for factor in (1, 2, 5) if factor * below <= low * 1.001)
    most = min(factor * above for factor in (1, 2, 5, 10) if factor * above >= high * 0.999)
    return Scale(min(least, most / 10), most, HEIGHT - BOTTOM, TOP, log=True)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _steps(low: float, high: float) -> Sequence[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about five of them."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> Sequence[float]:
    """Powers of ten within; multiples of them too, where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) > 3:
            break
    return values
