"""What `prune` and `evaluate` share on the command line: the options of the gates, the summary, and how they end."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxdpp.errors import MachineError, UsageError

MISSED = 1
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--max-discrepancy", type=float, metavar="D", help="Gate: the relative L2 of the worst output is at most D."
    ),
    click.option(
        "--max-accuracy-drop",
        type=float,
        metavar="F",
        help="Gate: accuracy falls by at most this share of the rows; needs --labels.",
    ),
    click.option(
        "--min-agreement", type=float, metavar="F", help="Gate: at least this share of the rows keeps its class."
    ),
    click.option(
        "--max-size-ratio",
        type=float,
        metavar="F",
        help="Gate: file bytes of the pruned model, divided by the original's, at most F.",
    ),
    click.option(
        "--min-speedup",
        type=float,
        metavar="F",
        help="Gate: latency of the original, divided by the pruned one's, at least F.",
    ),
    click.option("--baseline", metavar="REPORT", help="Gates: no figure is worse than in this earlier report."),
    click.option("--summary", is_flag=True, help=f"Markdown, added to the file ${STEP_SUMMARY} names, else on stdout."),
)


def gates(command: Command) -> Command:
    """Give a command the options of the gates, and ``--summary``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_summary(summary: bool, as_json: bool) -> None:
    """Refuse a summary and JSON that would both go to stdout."""
    if summary and as_json and not os.environ.get(STEP_SUMMARY):
        raise UsageError(f"--summary and --json both go to stdout where ${STEP_SUMMARY} is not set. Leave one out.")


def add_summary(text: str) -> bool:
    """Add Markdown to the file that GitHub names; False where it names none.

    Raises
    ------
    MachineError
        If that file cannot be written.
    """
    path = os.environ.get(STEP_SUMMARY)
    if not path:
        return False
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MachineError(f"Cannot write the summary to {path!a}: {error.strerror or error}.") from error
    return True


def missed(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The verdicts of the gates that are missed."""
    return [verdict for verdict in report["gates"] if not verdict["passed"]]


def settle(report: Mapping[str, Any]) -> None:
    """Say which gates are missed, and end with code 1 if one is."""
    from onnxdpp.gates import told

    verdicts = missed(report)
    for verdict in verdicts:
        with suppress(OSError):  # nobody reads it
            click.echo(f"error: {told(verdict)}", err=True)
    if verdicts:
        click.get_current_context().exit(MISSED)
