"""A contact sheet: one row per prompt, caption on the left, six frames (made by score.py --strips) on the right.

    python3 sheet.py --out sheet.png PROMPTS.txt:STRIPS_FOLDER:0,3,38 [...]
"""
import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import grammar as g

CELL, TEXT, GAP = 160, 300, 6


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    ap.add_argument("rows", nargs="+", help="prompt file:folder of strips:numbers from 0")
    args = ap.parse_args()
    rows = []
    for item in args.rows:
        prompts, folder, numbers = item.split(":")
        texts, files = g.read_prompts(prompts), sorted(Path(folder).iterdir())
        rows += [(texts[int(i)], files[int(i)]) for i in numbers.split(",")]
    frames = 6
    sheet = Image.new("RGB", (TEXT + frames * (CELL + GAP) + GAP, len(rows) * (CELL + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for k, (text, file) in enumerate(rows):
        top, strip = GAP + k * (CELL + GAP), Image.open(file)
        lines = textwrap.wrap(text, 29)
        pen.multiline_text((GAP + 4, top + (CELL - 24 * len(lines)) // 2), "\n".join(lines), fill="black", font=font, spacing=5)
        side = strip.height
        for i in range(frames):
            cell = strip.crop((i * side, 0, (i + 1) * side, side)).resize((CELL, CELL), Image.LANCZOS)
            sheet.paste(cell, (TEXT + GAP + i * (CELL + GAP), top))
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
