"""The pictures of the README: two pages of the demo's atlas as a browser shows them.

    python docs/images/draw.py runs/demo/atlas

Needs Playwright and Chromium, as the browser tests do.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browsing import Visit, browser

#: File, address, height, and the key that is pressed first: `h` shows where the neuron is active.
PICTURES = (
    ("overview.png", "#/", 933, None),
    ("neuron.png", "#/neuron/blocks.3/avg/32", 1640, "h"),
)
WIDTH = 1400

HERE = Path(__file__).parent


def draw(atlas: Path) -> None:
    """Write all pictures, with 256 colours each."""
    with browser() as chromium:
        for name, address, height, key in PICTURES:
            context = chromium.new_context(viewport={"width": WIDTH, "height": height})
            visit = Visit(context.new_page())
            page = visit.open((atlas / "index.html").resolve().as_uri() + address)
            if key:
                page.keyboard.press(key)
                page.wait_for_selector(".frame.lit canvas")
                visit.settle()
            page.wait_for_load_state("networkidle")
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                HERE / name, optimize=True
            )
            context.close()
            print(HERE / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("atlas", type=Path)
    draw(parser.parse_args().atlas)
