"""Open pages in a real browser, headless Chromium, and say what it made of them."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

LOOK = """<script>addEventListener("load", () => {
  const width = innerWidth, boxes = [...document.querySelectorAll("[aria-label]")].flatMap((named) => {
    const svg = named.matches("svg") ? named : named.querySelector("svg"), box = svg && svg.getBoundingClientRect();
    return svg ? [[named.getAttribute("aria-label"), box.width, box.height]] : [];
  });
  const wide = [...document.querySelectorAll("main *")].filter((e) => !e.closest("svg") && !e.closest(".wide")
    && e.getBoundingClientRect().right > width + 1).map((e) => e.tagName);
  document.title = "LOOK" + JSON.stringify({pictures: boxes, wide, text: document.body.innerText});
});</script>"""


def look(page: str, folder: Path, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """Open a page and return `pictures` (name, width and height in CSS pixels), `wide` (elements
    that stick out on the right), `text` (as shown) and `console` (what the browser complained of).

    The page is opened from a file, as a user does, with a script at the end that looks at it.
    """
    if CHROMIUM is None:
        pytest.skip("needs chromium, which is not installed here")
    path = folder / f"page {width} {dark}.html"
    path.write_text(page.replace("</body>", LOOK + "</body>") if "</body>" in page else page + LOOK)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},1000", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    command += ["--force-dark-mode"] * dark + [path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>LOOK(.*?)</title>", done.stdout, re.DOTALL)
    assert found, f"{done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return {**json.loads(unescape(found[1])), "console": console}
