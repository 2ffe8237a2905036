"""What stands on each page of a built deck, as Chromium draws it: text with its size, place, colour, and what lies under it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.projection import contrast

WIDTH, HEIGHT = 1280, 720  # CSS pixels: 960 x 540 pt
LEAST = 24  # CSS pixels: 18 pt

#: Every piece of text of the page in sight: [text, left, top, right, bottom, pixels high, colour, number of its element].
PIECES = """() => {
  const page = [...document.querySelectorAll('section')].find(s => s.getBoundingClientRect().width > 0 &&
      getComputedStyle(s.closest('svg[data-marpit-svg]')).visibility !== 'hidden' &&
      (s.closest('.bespoke-marp-active') || !document.querySelector('.bespoke-marp-active')));
  const walker = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
  const found = [], elements = [];
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest('style, script, .bespoke-marp-note')) continue;
    const style = getComputedStyle(parent), range = document.createRange();
    range.selectNodeContents(node);
    const matrix = parent.getScreenCTM ? parent.getScreenCTM() : null;
    const scale = matrix && parent.namespaceURI.endsWith('svg') ? Math.hypot(matrix.a, matrix.b) : page.getBoundingClientRect().width / page.offsetWidth;
    const color = parent.namespaceURI.endsWith('svg') ? style.fill : style.color;
    if (!elements.includes(parent)) elements.push(parent);
    for (const box of range.getClientRects())
      if (box.width > 0) found.push([node.textContent.trim().slice(0, 60), box.left, box.top, box.right, box.bottom, parseFloat(style.fontSize) * scale, color, elements.indexOf(parent)]);
  }
  const cut = [...page.querySelectorAll('pre, td, .card, .demo, .formula, .ask')].filter(e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1).map(e => e.textContent.trim().slice(0, 60));
  const blocks = [...page.children].filter(e => e.getBoundingClientRect().height > 0).map(e => {
    const box = e.getBoundingClientRect(); return [e.tagName + ' ' + e.textContent.trim().slice(0, 40), box.left, box.top, box.right, box.bottom]; });
  const foot = getComputedStyle(page, '::after');
  return {pieces: found, cut, blocks, foot: [foot.content, parseFloat(foot.fontSize)]};
}"""

INVISIBLE = "section, section * { color: transparent !important } section svg text { fill: transparent !important }"


@dataclass(frozen=True)
class Page:
    """One page as drawn: number, what is on it, and a picture of it with and without its text (height, width, RGB)."""

    number: int
    found: dict
    picture: np.ndarray
    ground: np.ndarray


def pages(browser, path: Path, width: int = WIDTH, height: int = HEIGHT, count: int | None = None) -> Iterator[Page]:
    """The pages of a deck, in a browser that cannot reach the network."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.evaluate("document.fonts.ready")
    tab.add_style_tag(content=".bespoke-marp-osc, .bespoke-progress-parent { display: none !important }")
    total = count or tab.locator("svg[data-marpit-svg]").count()
    for number in range(1, total + 1):
        tab.evaluate(f"location.hash = '#{number}'")
        tab.wait_for_function(
            f"!document.querySelector('.bespoke-marp-active') || [...document.querySelectorAll('svg[data-marpit-svg]')].indexOf(document.querySelector('.bespoke-marp-active')) === {number - 1}"
        )
        found, picture = tab.evaluate(PIECES), _picture(tab)
        hidden = tab.add_style_tag(content=INVISIBLE)
        yield Page(number, found, picture, _picture(tab))
        hidden.evaluate("element => element.remove()")
    context.close()


def _picture(tab) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))


def faults(page: Page, least: float = LEAST) -> list[str]:
    """What is wrong with a page, in words; nothing for a good one."""
    height, width = page.ground.shape[:2]
    found = [f"cut off: {text!r}" for text in page.found["cut"]]
    for text, left, top, right, bottom, size, color, _ in page.found["pieces"]:
        if left < 0 or top < 0 or right > width or bottom > height:
            found.append(f"off the page: {text!r}")
            continue
        if size < least - 0.3:
            found.append(f"{size * 0.75:.1f} pt: {text!r}")
        if right > width - 90 and bottom > height - 50 and page.found["foot"][0] not in ("none", "normal"):
            found.append(f"under the page number: {text!r}")
        if (seen := _contrast(page.ground, (left, top, right, bottom), color)) < (3 if size >= LEAST - 0.3 else 4.5):
            found.append(f"contrast {seen:.1f}: {text!r}")
    content, size = page.found["foot"]
    if content not in ("none", "normal") and size < least - 0.3:
        found.append(f"{size * 0.75:.1f} pt: the page number")
    return found + _overlaps(page.found["pieces"]) + _stacked(page.found["blocks"], height)


def _contrast(ground: np.ndarray, place: tuple[float, ...], color: str) -> float:
    left, top, right, bottom = (round(value) for value in place)
    under = np.median(ground[top : max(bottom, top + 1), left : max(right, left + 1)].reshape(-1, 3), axis=0) / 255
    channels = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return contrast(channels, tuple(under))


def _overlaps(pieces: list) -> list[str]:
    """Texts of different elements that lie over one another by more than a fifth of the smaller one's height and width."""
    found = []
    for i, (text, *one, _, _, owner) in enumerate(pieces):
        for other_text, *other, _, _, other_owner in pieces[i + 1 :]:
            across = min(one[2], other[2]) - max(one[0], other[0])
            down = min(one[3], other[3]) - max(one[1], other[1])
            flat = min(one[3] - one[1], other[3] - other[1])
            if owner != other_owner and across > 3 and down > 0.35 * flat:
                found.append(f"{text!r} lies over {other_text!r}")
    return found


def _stacked(blocks: list, height: int) -> list[str]:
    """Blocks of the page that run into one another, or to its lower edge."""
    found = []
    for (name, left, top, right, bottom), *rest in (blocks[i:] for i in range(len(blocks))):
        if bottom > height - 8:
            found.append(f"runs off the lower edge: {name!r}")
        found += [
            f"{name!r} runs into {other!r}"
            for other, left2, top2, right2, bottom2 in rest
            if min(right, right2) - max(left, left2) > 2 and min(bottom, bottom2) - max(top, top2) > 2
        ]
    return found
