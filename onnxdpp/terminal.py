"""What the commands share: options, errors of packages, signals, what goes to stdout and what to stderr."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from onnxdpp.errors import MachineError, UsageError
from onnxdpp.gating import add_summary, settle

TERMINATED = 143
PLAIN_WIDTH = 120  # of tables that go into a file or a pipe
LEAST_WIDTH = 72  # on a narrower terminal, lines wrap: better than tables without their numbers


class Keep(click.ParamType[float | str]):
    """A fraction, or auto."""

    name = "keep"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """The value of the option."""
        if value == "auto":
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither 'auto' nor a number.", param, ctx)


class Beta(click.ParamType[float | None]):
    """A number, or auto: None."""

    name = "beta"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """The value of the option."""
        if value is None or value == "auto":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither 'auto' nor a number.", param, ctx)


class Bytes(click.ParamType[int]):
    """A number of bytes, with or without a unit."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The value of the option."""
        if isinstance(value, int):
            return value
        from onnxdpp.options import parse_bytes

        try:
            return parse_bytes(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


@contextmanager
def importing() -> Iterator[None]:
    """Load packages, or tell which line mends them.

    Those that were built for another NumPy fail with any of these errors. An interrupt ends the process at once:
    as an exception, onnxruntime would take it for a missing library.
    """
    try:
        with on_signal(signal.SIGINT, signal.SIG_DFL):
            yield
    except (ImportError, ValueError, AttributeError) as error:
        raise MachineError(
            f"A package cannot be imported: {error}. In a folder with onnxdpp's sources, run: pip install --upgrade "
            "--force-reinstall ."
        ) from error


@contextmanager
def on_signal(number: int, action: Any) -> Iterator[None]:
    """Let a signal do this meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)


def terminate(*_: object) -> NoReturn:
    """End as a process does that is told to."""
    raise SystemExit(TERMINATED)


def say(text: str) -> None:
    """One line on stderr."""
    with suppress(OSError):  # nobody reads it
        click.echo(text, err=True)


def say_notices(report: Mapping[str, Any]) -> None:
    """What whoever reads a report ought to know."""
    for notice in report["notices"]:
        say(f"note: {notice}")


def output_of(model: str, output: str | None, suffix: str) -> Path:
    """Where a model that is made of `model` goes: where it is asked to, or beside it."""
    if output == "-":
        raise UsageError("OUT is '-': a model is written to a file, never to stdout. Name one.")
    source = Path(model)
    return Path(output) if output is not None else source.parent / f"{source.stem}.{suffix}.onnx"


class _Results(Console):
    """Writes to stdout."""

    def on_broken_pipe(self) -> None:
        """Leave it to the entry point; rich would end with code 1."""
        raise  # noqa: PLE0704  (the BrokenPipeError that is being handled)


def show(parts: Iterator[RenderableType]) -> None:
    """Tables on stdout, a blank line between them."""
    console = _Results(file=sys.stdout, highlight=False, markup=False)
    console.width = max(console.width, LEAST_WIDTH) if sys.stdout.isatty() else PLAIN_WIDTH
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part, soft_wrap=isinstance(part, str))


KERNEL = click.option("--kernel", default="rbf", show_default=True, metavar="rbf|linear|consumer", help="Of the DPP.")
BETA = click.option(
    "--beta",
    type=Beta(),
    default="auto",
    show_default=True,
    metavar="auto|B",
    help="Of the rbf kernel; 10 is the papers'.",
)
EPSILON = click.option(
    "--epsilon",
    type=float,
    default=0.01,
    show_default=True,
    metavar="E",
    help="Added to the kernel's diagonal.",
)
REFIT = click.option(
    "--refit",
    default="affine",
    show_default=True,
    metavar="affine|linear|none",
    help="Least squares with an intercept; without, as in the papers; none.",
)
PROVIDER = click.option(
    "--provider", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where models run."
)
CALIB = click.option("--calib", required=True, metavar="DATA", help=".npz, .npy, a folder of them, or random:ROWS.")
SKIP = click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these layers alone.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors (and --json).")
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks and log what is done.")
VALUES = click.option(
    "--values", default="same", show_default=True, metavar="same|float16", help="Of packed weights: rounded or not."
)
MAX_ROWS = click.option("--max-rows", type=int, metavar="N", help="Use N rows, evenly spaced over the data.")
MASK = click.option("--mask", metavar="NAME", help="An input whose zeros mark padding, which counts for nothing.")


def conclude(
    report: dict[str, Any], tables: Iterator[RenderableType], summary: bool, as_json: bool, quiet: bool
) -> None:
    """Print a report in the form that is asked for; end with code 1 where a gate is missed."""
    from onnxdpp.report import to_json
    from onnxdpp.summary import summary as markdown

    shown = summary and not add_summary(markdown(report))
    if as_json:
        click.echo(to_json(report), nl=False)
    elif shown:
        click.echo(markdown(report), nl=False)
    elif not quiet:
        show(tables)
    settle(report)


def is_random(calib: str) -> bool:
    """Whether the data are drawn, and no file."""
    return calib.startswith("random:")


def check_calib(calib: str | None) -> None:
    """Refuse a name that is empty."""
    if calib == "":
        raise UsageError("--calib is empty. Name the calibration data.")


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda text, fraction: None
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
    with bar:
        task = bar.add_task("start", total=1.0)
        yield lambda text, fraction: bar.update(task, description=ascii(text)[1:-1][:40], completed=fraction)


def log_if(debug: bool) -> None:
    """Log what is done, on stderr, where it is asked for."""
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s", force=True)
