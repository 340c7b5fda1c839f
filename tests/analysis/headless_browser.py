"""A headless Chromium without a driver: a script appended to the page acts as a user and leaves its findings there."""

import html
import json
import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

BEFORE = """
const said = [];
function say(what) { said.push(what); }
window.addEventListener("error", (e) => say({ error: e.message }));
"""
AFTER = """
const pre = document.createElement("pre");
pre.id = "said"; pre.hidden = true; pre.textContent = JSON.stringify(said);
document.body.append(pre);
"""


def chromium():
    """Path of a Chromium, or a skip that says what is missing."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no headless browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")


def act(page, script, tmp_path, *, dark=False, screenshot=None, size=(1400, 1700)):
    """Open a copy of the page, run `script` (it calls `say(anything)`), return what it said.

    The page's own errors come back as {"error": ...}.
    """
    extra = f"<script>{BEFORE}{script}{AFTER}</script></body>"
    watch = "<script>window.failures = []; window.onerror = (m) => { window.failures.push(m); };</script>"
    text = page.read_text(encoding="utf-8").replace("<header>", watch + "<header>", 1)
    copy = tmp_path / "acted.html"
    copy.write_text(text[: text.rindex("</body>")] + extra, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size[0]},{size[1]}"]  # fmt: skip
    if dark:
        options += ["--blink-settings=preferredColorScheme=0"]
    output = [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
    done = subprocess.run(
        [chromium(), *options, *output, copy.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if screenshot:
        assert screenshot.is_file(), done.stderr[-2000:]
        return []
    found = re.search(r'<pre id="said"[^>]*>(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))
