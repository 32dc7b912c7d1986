"""A real browser, for pages: Chromium without a window, which says what a page does at some width."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the PATH"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr "
    "--disable-dev-shm-usage --virtual-time-budget=20000 --dump-dom"
).split()
# Around the page, not in it: the page's own policy lets no other script run.
HARNESS = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe id="frame" src="{page}" width="{width}" height="900"></iframe><pre id="said"></pre>
<script>
document.getElementById("frame").addEventListener("load", (event) => {{
  const page = event.target.contentDocument, view = event.target.contentWindow;
  let said;
  try {{ said = (() => {{ {script} }})(); }} catch (error) {{ said = {{ error: String(error) }}; }}
  document.getElementById("said").textContent = JSON.stringify(said);
}});
</script>"""


def ask(page: Path, width: int, script: str) -> tuple[Any, list[str]]:
    """What a script says of a page at a width in pixels (`page`: its document, `view`: its window), and the console."""
    assert BROWSER is not None
    harness = page.with_name("harness.html")
    harness.write_text(HARNESS.format(page=page.name, width=width, script=script), encoding="utf-8")
    profile = page.with_name("profile")
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--window-size={max(width, 500)},900", harness.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    assert found[1], done.stderr
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
