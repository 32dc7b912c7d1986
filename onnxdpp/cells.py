"""What tables are made of: columns, and numbers as people read them."""

from rich import box
from rich.table import Table
from rich.text import Text


def new_table(*titles: str, text: int = 1) -> Table:
    """A table whose first `text` columns hold words, which may be folded, and the others numbers, which are not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, title in enumerate(titles):
        if place < text:
            table.add_column(Text(title), overflow="fold")
        else:
            table.add_column(Text(title), justify="right", no_wrap=True)
    return table


def pair(before: int | None, after: int | None) -> tuple[str, str, str]:
    """Two counts and their ratio."""
    if before is None or after is None:
        return "-", "-", "-"
    return f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "-"


def number(value: float | None) -> str:
    """Four digits."""
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(1.5), duration(0.00234567), duration(0.0000231)
    ('1.500 s', '2.346 ms', '23.10 µs')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.4g} {unit}"
    return f"{seconds / 1e-6:#.4g} µs"
