"""Takes docs/figures/page.png: the page of `shiftvit serve` with an answer and its heat map, in Chromium.

python docs/make_page.py
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import open_browser  # noqa: E402
from serving import run_server  # noqa: E402


def main() -> None:
    with run_server() as server, open_browser() as browser:
        browser.open(server.url)
        # Clicks of a script, after which no pointer rests on anything.
        browser.run("arguments[0].click()", browser.wait(lambda: browser.all('#samples button[title="cat"]'))[0])
        browser.run("arguments[0].click()", browser.wait(lambda: browser.all(".open"))[0])
        browser.wait(lambda: browser.all(".heat"))
        browser.run("document.querySelector('.time').textContent = ''; scrollTo(0, 0)")  # that of this machine
        size = browser.run("return [innerWidth, document.querySelector('.foot').getBoundingClientRect().top]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = browser.tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.save(ROOT / "docs" / "figures" / "page.png", optimize=True)


if __name__ == "__main__":
    main()
