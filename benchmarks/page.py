"""Pages that benchmarks write their results into, between two markers."""

from __future__ import annotations

import argparse
from pathlib import Path

END = "<!-- end -->"


def put(page: Path, begin: str, text: str) -> None:
    """Put text between the marker `begin` and the next end marker of the page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}{END}{rest.split(END, 1)[1]}")


def arguments(description: str | None, quick: str = "", workers: bool = False) -> argparse.Namespace:
    """What a benchmark was called with: `--write`, and where it has them `--quick` and `--workers`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into the page in docs")
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    if workers:
        parser.add_argument("--workers", type=int, default=2, help="processes")
    return parser.parse_args()


def publish(page: Path, begin: str, text: str, write: bool) -> None:
    """Print the text, and put it into the page if that was asked for."""
    print(text)
    if write:
        put(page, begin, text)
