"""Markdown for CI: nothing in a name is markup."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import EVALUATION, REPORT, changed

from onnxdpp.summary import ROWS, escaped, summary

HOSTILE = [
    "<img src=x onerror=alert(1)>", "a | b", "`x`", "**bold**", "_it_", "[a](http://x)", "![i](x)", "# title", "@team",
    "https://evil.example", "www.evil.example", "a\nb", "\x1b[2J", "\u202eabc", "- item", "~~x~~", "&lt;", "$x^2$",
    "\\|",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup(name: str) -> None:
    text = escaped(name)
    assert not set(text.replace("&#", "")) & set("<>|`*_[]#@\n\x1b\u202e~$\\")
    assert "://" not in text
    assert "www." not in text
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert html.unescape(text) == visible


@given(st.text())
def test_escaped_names_stay_on_one_line_and_are_short(name: str) -> None:
    text = escaped(name)
    assert text.isprintable()
    assert len(html.unescape(text)) <= 12 * 200


def test_summary_of_a_report_shows_what_was_tried() -> None:
    text = summary(REPORT)
    assert text.startswith("### onnxdpp: 1 of 2 gates missed\n\n")
    assert "| max-discrepancy | 0.625 | 0.625 | passed |\n| min-agreement | missing | 0.5 | **missed** |" in text
    assert "| y | 0.625 | 2 | 0.5 | 1 |" in text
    assert "| fc1 | 3 | 2 | 0.25 |" in text
    assert text.endswith("\n- something\n\n")


def test_summary_of_an_evaluation() -> None:
    text = summary(EVALUATION)
    assert text.startswith("### onnxdpp\n\n| model | original | pruned | ratio |\n| --- | ---: | ---: | ---: |\n")
    assert "| gzip bytes | 1,000,000 | 900 | 0.001 |" in text
    assert "| latency, rows: 1 | 2 ms | 1 ms | 0.500 |" in text
    assert "| y | 0.7500 | 0.5000 | -0.2500 | -0.5000 to +0.1250 |" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_rows_of_tables_keep_their_cells(name: str) -> None:
    report = changed(REPORT, ("layers", 0, "name"), name)
    report = changed(report, ("notices",), [name])
    report["evaluation"]["discrepancy"] = {name: {"relative_l2": 0.0}}
    for block in summary(report).split("\n\n")[1:-2]:
        widths = {line.count("|") for line in block.splitlines()}
        assert len(widths) == 1, block


def test_long_tables_are_cut() -> None:
    many = [{**REPORT["layers"][0], "name": f"layer{i}"} for i in range(ROWS + 7)]
    text = summary({**REPORT, "layers": many})
    assert "| 7 more |  |  |  |" in text
    assert f"layer{ROWS - 1} " in text
    assert f"layer{ROWS} " not in text
