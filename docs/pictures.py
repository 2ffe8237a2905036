"""Make the README's pictures of what the browser tests saw (`make screenshots`): docs/NAME.png, in few colours, so small."""

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
SEEN = DOCS.parent / "build/screenshots"
PICTURES = {"lesson": "lesson_03_slider", "panel": "panel_ready"}

for name, seen in PICTURES.items():
    picture = Image.open(SEEN / f"{seen}.png").convert("RGB").quantize(96, dither=Image.Dither.NONE)
    picture.save(DOCS / f"{name}.png", optimize=True)
    print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1000:.0f} kB")
