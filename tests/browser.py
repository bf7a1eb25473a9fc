"""Helpers of tests that open pages in Chromium; the fixture `browser` is in shared_fixtures.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

OVERLAPS = """() => {
  // Every painted line of text, clipped by elements around it that scroll or hide.
  const lines = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("script, style, details:not([open]) > :not(summary)")) continue;
    if (!parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      let [left, top, right, bottom] = [rect.left, rect.top, rect.right, rect.bottom];
      for (let box = parent; box !== document.body; box = box.parentElement) {
        if (getComputedStyle(box).overflow === "visible" || box instanceof SVGElement) continue;
        const clip = box.getBoundingClientRect();
        [left, top] = [Math.max(left, clip.left), Math.max(top, clip.top)];
        [right, bottom] = [Math.min(right, clip.right), Math.min(bottom, clip.bottom)];
      }
      if (right - left > 1 && bottom - top > 1) lines.push({ node, left, top, right, bottom });
    }
  }
  const found = [];
  lines.sort((a, b) => a.top - b.top);
  for (let i = 0; i < lines.length; i++) {
    for (let j = i + 1; j < lines.length && lines[j].top < lines[i].bottom; j++) {
      const [a, b] = [lines[i], lines[j]];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - b.top;
      // line boxes are taller than letters: a third of a line is no overlap
      if (a.node !== b.node && wide > 2 && high > (Math.min(a.bottom - a.top, b.bottom - b.top)) / 3)
        found.push(`${a.node.textContent.trim()} | ${b.node.textContent.trim()}`);
    }
  }
  return found;
}"""


def keep_screenshot(page: Any, name: str) -> None:
    """Save a screenshot of the complete page in the folder ALEXNET_SCREENSHOTS, if set."""
    if folder := os.environ.get("ALEXNET_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
