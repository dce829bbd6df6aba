"""Pages that benchmarks write their results into, between two markers."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


def put(page: Path, begin: str, text: str) -> None:
    """Put text between the marker `begin` and the next end marker of the page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}{END}{rest.split(END, 1)[1]}")
