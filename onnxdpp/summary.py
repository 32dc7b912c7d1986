"""Reports as Markdown, for the summary of a CI job: short, and nothing in it but what is written here is markup.

Names come from model files: every character that Markdown or HTML could take for its own is escaped.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from onnxdpp.gates import shown
from onnxdpp.report import FORMS

LIMIT = 200  # characters of a name, a reason or a notice
ROWS = 200  # of a table: GitHub refuses summaries above 1 MiB

SIZES = {
    "bytes": "file bytes",
    "gzip_bytes": "gzip bytes",
    "parameters": "parameters",
    "nonzero": "non-zeros",
    "macs": "MACs per row",
}
ANSWERS = {"relative_l2": "relative L2", "max_abs": "max abs", "cosine": "cosine", "agreement": "agreement"}


def summary(report: Mapping[str, Any]) -> str:
    """A report of `prune` or `evaluate` as Markdown.

    Parameters
    ----------
    report : mapping
        As the JSON Schema ``report`` or ``evaluation`` says.
    """
    tried = report.get("evaluation") or report
    tables = [
        _table(("gate", "value", "limit", "verdict"), map(_gate, report["gates"])),
        _table(("model", "original", "pruned", "ratio"), [*_sizes(report["model"]), *_latencies(tried)]),
        _table(
            ("output", *ANSWERS.values()),
            (
                (escaped(name), *(_number(part.get(key)) for key in ANSWERS))
                for name, part in tried["discrepancy"].items()
            ),
        ),
        _table(
            ("accuracy", "original", "pruned", "change", "95 % interval"),
            (
                (escaped(name), f"{part['before']:.4f}", f"{part['after']:.4f}", f"{part['change']:+.4f}",
                 f"{part['low']:+.4f} to {part['high']:+.4f}")
                for name, part in tried.get("accuracy", {}).items()
            ),
        ),
        _table(
            ("layer", "width", "kept", "loss"),
            (
                (escaped(layer["name"]), f"{layer['width']:,}", f"{layer['kept']:,}", _number(layer["loss"]))
                for layer in report.get("layers", ())
            ),
        ),
        _table(("weight", "non-zeros", "stored as", "dense bytes", "bytes", "ratio"), _stored(report.get("storage"))),
    ]  # fmt: skip
    notices = "\n".join(f"- {escaped(notice)}" for notice in report["notices"][:ROWS])
    return "\n\n".join(part for part in (_headline(report["gates"]), *tables, notices) if part) + "\n\n"


def _headline(gates: Sequence[Mapping[str, Any]]) -> str:
    missed = sum(not verdict["passed"] for verdict in gates)
    if not gates:
        return "### onnxdpp"
    return f"### onnxdpp: {missed} of {len(gates)} gates missed" if missed else "### onnxdpp: all gates passed"


def _gate(verdict: Mapping[str, Any]) -> Sequence[str]:
    return escaped(verdict["gate"]), *shown(verdict), "passed" if verdict["passed"] else "**missed**"


def _sizes(model: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    before, after = model["before"], model["after"]
    for key, title in SIZES.items():
        if key in before:
            yield title, *_pair(before[key], after[key])


def _latencies(tried: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for part in tried.get("latency", ()):
        times = (f"{part[side] * 1e3:.4g} ms" for side in ("before", "after"))
        yield f"latency, rows: {part['rows']:,}", *times, f"{part['ratio']:.3f}"


def _stored(storage: Mapping[str, Any] | None) -> Iterator[Sequence[str]]:
    for part in storage["tensors"] if storage else ():
        sizes = _pair(part["dense_bytes"], part["bytes"])
        yield escaped(part["name"]), f"{part['nonzero']:,}", FORMS[part["form"]], *sizes


def escaped(text: str) -> str:
    """`text` on one line, with whatever could be markup escaped.

    >>> escaped("a|b <img> _x_"), escaped("http://a.b")
    ('a&#124;b &#60;img&#62; &#95;x&#95;', 'http&#58;//a.b')
    """
    cut = text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in cut)
    return re.sub(r"[^\w ,./()'%=-]|_|(?<=www)\.|^-", lambda found: f"&#{ord(found[0])};", visible)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows[:ROWS]]
    if len(rows) > ROWS:
        lines.append([f"{len(rows) - ROWS} more", *[""] * (len(titles) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pair(before: int | None, after: int | None) -> tuple[str, str, str]:
    if before is None or after is None:
        return "-", "-", "-"
    return f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
