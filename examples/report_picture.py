"""A picture of a report: its title, its finding and its matrices.

    bank report --bank demo-output/bank --out report.html
    python examples/report_picture.py report.html --out docs/report.png

Needs chromium, chromedriver and selenium; see docs/report.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.servers.report_browser import chromium, open_report

WIDTH = 1400
COLOURS = 256
# What the picture has no room for; the page itself stays as it is.
HIDDEN = (
    "nav, #bank h3, #bank p, .chips, #adapters, #tables, #targets, #sizes, #times, #made, #matrices > p,"
    "#finding h2, #bank h2, #matrices h2 { display: none !important }"
    "section { margin-top: 1.2rem } body { padding-bottom: 0.5rem } figure.large { position: static }"
)
LEFT_OUT = ["nearest coefficients", "other coefficients"]
PREPARE = """
const style = document.createElement('style')
style.textContent = arguments[0]
document.head.append(style)
for (const heading of document.querySelectorAll('.overview h3')) {
  if (arguments[1].includes(heading.textContent)) { heading.nextElementSibling.remove(); heading.remove() }
}
"""


def photograph(report: Path) -> Image.Image:
    with chromium() as driver:
        open_report(driver, report, WIDTH)
        driver.execute_script(PREPARE, HIDDEN, LEFT_OUT)
        time.sleep(2)  # the figures take their new places
        height = driver.execute_script("return document.querySelector('main').getBoundingClientRect().bottom")
        return captured(driver, height)


def captured(driver: Any, height: int) -> Image.Image:
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": int(height) + 12, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    arguments = parser.parse_args()
    picture = photograph(arguments.report)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(
        f"wrote {arguments.out}: {picture.width} x {picture.height}, {arguments.out.stat().st_size / 1000:.0f} kB"
    )


if __name__ == "__main__":
    main()
