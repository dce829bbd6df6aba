"""The page docs/accuracy.md, and markdown tables."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"


class Table:
    """A markdown table, row by row."""

    def __init__(self, head: list[str]) -> None:
        self.lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def add(self, *cells: str) -> None:
        """One row."""
        self.lines.append("| " + " | ".join(cells) + " |")

    def __str__(self) -> str:
        return "\n".join(self.lines)
