"""The documents: their links lead somewhere, their examples run, their options are those of the commands."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from invoking import DIGITS, execute

from onnxdpp.__main__ import INTERRUPTED
from onnxdpp.cli import cli
from onnxdpp.errors import OnnxdppError
from onnxdpp.gating import MISSED
from onnxdpp.terminal import TERMINATED

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("samples/**/*.md")])
MANUALS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
OF_OTHERS = {"--help", "--layers", "--repeats"}
"""Of click, and of the benchmarks that the README speaks of."""

FENCE = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\(([^()\s]+)\)")
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """Text without code, where brackets are no links."""
    return CODE.sub("", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, no punctuation, hyphens for spaces, numbers for the same again."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        again = next(n for n in range(100) if (anchor if not n else f"{anchor}-{n}") not in found)
        found.add(anchor if not again else f"{anchor}-{again}")
    return found


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of `onnxdpp` in blocks of code and in code between words: the command and what follows."""
    blocks = [body for _, kind, body in FENCE.findall(text) if kind in ("sh", "yaml", "")]
    blocks += re.findall(r"(?:^ {4}\S[^\n]*\n(?: {4,}[^\n]*\n)*)", FENCE.sub("", text), re.MULTILINE)
    blocks += [body.replace("\n", " ") for _, body in CODE.findall(FENCE.sub("", text))]
    for block in blocks:
        for line in re.sub(r"\\\n\s*|\n(?= {6,}-)", " ", block).splitlines():
            for call in re.findall(rf"(?:\bonnxdpp|arguments:) +((?:{'|'.join(cli.commands)})\b.*)", line):
                command, *words = call.split()
                yield command, words


def options(words: list[str]) -> set[str]:
    """Names of options among words, without values, brackets and alternatives."""
    return {found for word in words for found in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", word)}


def known(command: str) -> set[str]:
    """All options of a command."""
    return {
        text
        for part in cli.commands[command].params
        if isinstance(part, click.Option)
        for text in (*part.opts, *part.secondary_opts)
    }


ALL = {option for command in cli.commands for option in known(command)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name(path)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(there), f"{name(path)} links to {target}; there are {sorted(anchors(there))}"


@pytest.mark.parametrize("path", MANUALS, ids=name)
def test_calls_have_options_that_their_command_knows(path: Path) -> None:
    for command, words in commands(path.read_text(encoding="utf-8")):
        unknown = options(words) - known(command) - {"--help"}
        assert not unknown, f"{name(path)}: onnxdpp {command} {shlex.join(words)}"


@pytest.mark.parametrize("path", MANUALS, ids=name)
def test_options_that_are_named_exist(path: Path) -> None:
    """In code between words; `python samples/...` and such have options of their own."""
    for _, code in CODE.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if not re.match(r"(?:python|pytest|pip|\S+/python) ", code):
            named = options(code.split())
            assert named <= ALL | OF_OTHERS, f"{name(path)}: `{code}`"


README = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = {
    "inspect": ("`inspect` shows", "`prune` does it"),
    "prune": ("`prune` does it", "`evaluate` says"),
    "evaluate": ("`evaluate` says", "### Gates"),
    "compare": ("### Compare methods", "### Smaller files"),
    "pack": ("### Smaller files", "### From Python"),
    "unpack": ("### Smaller files", "### From Python"),
}
"""Where the README speaks of a command: from here to there."""


def part_of(command: str) -> str:
    """What the README says of a command: its own part, the gates where it has some, and lines that name it."""
    start, end = PARTS[command]
    parts = [README[README.index(start) : README.index(end)]]
    if "--baseline" in known(command):
        parts.append(README[README.index("### Gates") : README.index("### Compare methods")])
    return "\n".join([*parts, *(line for line in README.splitlines() if f"`{command}`" in line)])


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_readme_tells_every_option(command: str) -> None:
    told = {option for name, words in commands(README) if name == command for option in options(words)}
    for _, code in CODE.findall(FENCE.sub("", part_of(command))):
        told |= options(code.split()) | ({"-o"} if code.split()[0] == "-o" else set())
    missing = {
        option
        for part in cli.commands[command].params
        if isinstance(part, click.Option) and not told & {*part.opts, *part.secondary_opts}
        for option in part.opts[-1:]
    }
    assert not missing - {"--help"}


def test_readme_tells_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("### Exit codes\n")[2].partition("\n#")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    errors = {kind.exit_code for kind in OnnxdppError.__subclasses__()}
    assert told == {0, MISSED, INTERRUPTED, TERMINATED} | errors


def defaults(command: str) -> dict[str, str]:
    """Option -> what stands in the last column of tables of three."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in part_of(command).splitlines() if line.startswith("| `-")]
    return {
        option: row[2].strip() for row in rows if len(row) == 3 for option in options(row[0].replace("`", " ").split())
    }


@pytest.mark.parametrize("command", ["inspect", "prune", "compare"])
def test_readme_tells_the_defaults(command: str) -> None:
    """Where they are numbers or words; what a command's own table leaves out is as for `prune`."""
    told = defaults("prune") | defaults(command)
    for part in cli.commands[command].params:
        if isinstance(part.default, str | int | float) and not isinstance(part.default, bool):
            assert re.match(r"`([^`]*)`|", told[part.opts[0]])[1] == str(part.default), part.opts[0]


def test_manuals_name_each_other() -> None:
    """From the README every page of docs/ is one step away, and each leads back."""
    readme = LINK.findall(prose(ROOT / "README.md"))
    for path in ROOT.glob("docs/*.md"):
        assert name(path) in {target.partition("#")[0] for target in readme}
        assert any(target.partition("#")[0] == "../README.md" for target in LINK.findall(prose(path)))


@pytest.mark.parametrize("page", ["python.md", "calibration-data.md"])
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("model.onnx", "calib.npz", "test.npz"):
        shutil.copy(DIGITS / file, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    examples = [
        body for _, kind, body in FENCE.findall((ROOT / "docs" / page).read_text(encoding="utf-8")) if kind == "python"
    ]
    assert examples
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, page, "exec"), namespace)


def test_example_of_gates_prints_what_stands_below_it() -> None:
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    call, table, line = (body for _, kind, body in FENCE.findall(text)[:3])
    words = shlex.split(call.replace("\\\n", " "))
    outcome = execute(*words[1:], "--dry-run", "--provider", "cpu", cwd=ROOT)
    assert outcome.code == 1
    assert table in outcome.out
    assert outcome.err == line
