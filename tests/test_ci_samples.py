"""The action and the CI samples do what they say: their commands run, and their input is never run by a shell."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoking import DIGITS, execute

ROOT = Path(__file__).parents[1]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the digits model and its data in `models`, as the samples have it."""
    shutil.copytree(DIGITS, tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "*.md"))
    return tmp_path


def arguments(sample: str, start: str) -> list[str]:
    """The words of the folded text after `start`, up to the first line that is indented less."""
    lines = (ROOT / "samples" / "ci" / sample).read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip() == start) + 1
    indent = len(lines[first]) - len(lines[first].lstrip())
    last = next(number for number, line in enumerate(lines[first:], first) if not line.startswith(" " * indent))
    return shlex.split(" ".join(lines[first:last]))


def test_gitlab_sample(models: Path) -> None:
    words = arguments("gitlab.yml", "- >-")
    assert (words[0], words[-2:]) == ("onnxdpp", [">", "summary.md"])
    outcome = execute(*words[1:-2], cwd=models, env={"GITHUB_STEP_SUMMARY": None})
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("### onnxdpp: all gates passed\n")
    assert (models / "pruned.onnx").is_file()
    assert len(json.loads((models / "report.json").read_text())["gates"]) == 3


def test_samples_run_the_same_command() -> None:
    assert arguments("github.yml", "arguments: >-") == arguments("gitlab.yml", "- >-")[1:-3]


def test_action_runs_its_arguments_and_no_shell_does(models: Path) -> None:
    """What a shell would expand is a name like any other."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    (code,) = re.findall(r'"\$python" -I -c \'([^\']+)\'', text)
    script = text[text.index("run: |") :]
    assert "${{" not in script
    shutil.copy(models / "models" / "model.onnx", models / "$(touch gone) a.onnx")
    line = "evaluate models/model.onnx '$(touch gone) a.onnx' --data random:8 --no-latency --no-memory --provider cpu"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=models,
        env={**os.environ, "ARGUMENTS": line, "GITHUB_STEP_SUMMARY": str(models / "summary.md")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert (models / "summary.md").read_text(encoding="utf-8").startswith("### onnxdpp\n")
    assert not (models / "gone").exists()
