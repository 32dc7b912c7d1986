"""The picture of a comparison: error against the parameters that are left, a curve for each method.

Colour and marker tell methods apart, the same in every picture; a dashed line with hollow markers is edges. The
colours are those of Okabe and Ito, and one of Tol's, which people with colour-blindness can tell apart. An axis is
logarithmic where its values are positive and span more than `SPAN`. The same findings make the same bytes (with the
same matplotlib).

References
----------
M. Okabe, K. Ito: Color universal design, 2008. P. Tol: Colour schemes, SRON/EPS/TN/09-002, 2021.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxdpp.curves import CLASSIFICATION, HELD_OUT_ROWS
from onnxdpp.errors import MachineError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
SPAN = 8
SIZE = (8.0, 4.5)  # inches
DPI = 160
GREY = "#767676"


class _Look(NamedTuple):
    colour: str
    marker: str


LOOKS = {
    "auto": _Look("#000000", "o"),
    "dpp": _Look("#0072B2", "s"),
    "dpp-sample": _Look("#56B4E9", "D"),
    "obs": _Look("#D55E00", "^"),
    "omp": _Look("#E69F00", "v"),
    "wanda": _Look("#CC79A7", "P"),
    "fluctuation": _Look("#882255", "X"),
    "importance": _Look("#009E73", "p"),
    "random": _Look(GREY, "<"),
}
UNPRUNED: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": ":"}
# Set over matplotlib's own defaults, whatever a matplotlibrc says.
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.hashsalt": "onnxdpp",
    "svg.fonttype": "path",
}


def check_plot(path: str | Path) -> None:
    """Refuse, before the long work starts, a picture that cannot be made.

    Raises
    ------
    UsageError
        If the file is neither a PNG nor an SVG.
    MachineError
        If matplotlib is missing.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"The plot {str(path)!a} is neither .png nor .svg. Name such a file.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MachineError(f"A plot needs matplotlib ({error}). Run: pip install 'matplotlib>=3.9'") from error


def image(found: dict[str, Any], suffix: str) -> bytes:
    """The picture as a file.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``comparison`` says.
    suffix : {".png", ".svg"}
    """
    check_plot(f"plot{suffix}")
    file = io.BytesIO()
    kind = suffix.lower().removeprefix(".")
    with _style():
        figure(found).savefig(file, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def figure(found: dict[str, Any]) -> "Figure":
    """The picture as a matplotlib figure.

    Parameters
    ----------
    found : dict
        As the JSON Schema ``comparison`` says.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    whole = found["model"]["nonzero"]
    with _style():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        curves = [(curve, _points(curve, whole)) for curve in found["curves"]]
        labelled = found["measure"] == CLASSIFICATION
        seen = [point for _, points in curves for point in points]
        errors = [point.error for point in seen] + [100 * found["unpruned"]] * labelled
        _scale(axes, "x", [point.left for point in seen], 100.0)
        _scale(axes, "y", errors, max([*errors, *(point.error + point.deviation for point in seen)]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for number, (curve, points) in enumerate(curves):
            _draw(axes, curve, points, 3 + len(curves) - number)
        if labelled:
            axes.axhline(100 * found["unpruned"], zorder=2, **UNPRUNED)
        axes.set_title(_title(found), loc="left", fontsize=10)
        axes.set_xlabel(f"parameters left, % of {whole:,}")
        axes.set_ylabel(f"{found['measure']}, %")
        _legend(figure, found)
    return figure


class _Point(NamedTuple):
    """In per cent."""

    left: float
    error: float
    deviation: float


def _points(curve: dict[str, Any], whole: int) -> list[_Point]:
    return [
        _Point(100 * point["parameters"] / whole, 100 * point["error"], 100 * (point["deviation"] or 0.0))
        for point in curve["points"]
        if point["error"] is not None
    ]


def _draw(axes: "Axes", curve: dict[str, Any], points: list[_Point], order: int) -> None:
    """A line through the means, and one standard deviation either way."""
    look = LOOKS[curve["method"]]
    left = [point.left for point in points]
    axes.plot(left, [point.error for point in points], zorder=order, **_line(look, curve["unit"]))
    if any(point.deviation for point in points):
        floor = axes.get_ylim()[0]  # below it a logarithmic axis knows no end
        low, high = ([max(point.error + sign * point.deviation, floor) for point in points] for sign in (-1, 1))
        axes.fill_between(left, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=1)


def _line(look: _Look, unit: str) -> dict[str, Any]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 5.5,
        "linewidth": 1.6,
        **({"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if unit == "edge" else {}),
    }


def _scale(axes: "Axes", name: str, values: list[float], top: float) -> None:
    """Logarithmic, with a tick at 1, 2 and 5 times each power of ten, at the powers alone if those are many; or linear.

    Parameters
    ----------
    values : list of float
        What must be seen; a linear axis begins at zero all the same.
    top : float
        The end of the axis.
    """
    low = min(values)
    if low <= 0 or top <= SPAN * low:
        getattr(axes, f"set_{name}lim")(0, 1.04 * top or 1)
        return
    low, high = low * (low / top) ** 0.04, top * (top / low) ** 0.04
    getattr(axes, f"set_{name}scale")("log")
    steps = (1, 2, 5) if high < 1e3 * low else (1,)
    ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
    getattr(axes, f"set_{name}ticks")([tick for tick in ticks if low <= tick <= high])
    getattr(axes, f"set_{name}ticks")([], minor=True)
    getattr(axes, f"set_{name}lim")(low, high)


def _title(found: dict[str, Any]) -> str:
    held = found["judged_rows"] if found["data"] == HELD_OUT_ROWS else 0
    return f"pruned on {found['rows'] - held:,} rows, judged on {found['judged_rows']:,} others"


def _legend(figure: "Figure", found: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], label=method, **_line(LOOKS[method], "neuron")) for method in found["options"]["method"]]
    if found["options"]["unit"] == "both":
        entries.append(Line2D([], [], linestyle="", label=" "))
        entries += [Line2D([], [], label=f"{unit}s", **_line(_Look(GREY, "o"), unit)) for unit in ("neuron", "edge")]
    if found["measure"] == CLASSIFICATION:
        entries.append(Line2D([], [], label="unpruned", **UNPRUNED))
    figure.legend(handles=entries, loc="outside right upper", handlelength=2.8)


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib.style import context

    with context(["default", STYLE]):
        yield
