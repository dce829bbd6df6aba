"""What a sweep returns: tidy rows, as dictionaries, CSV, or a DataFrame."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from sdegen.bench import files
from sdegen.errors import InvalidArgumentError

COLUMNS = (
    "model",
    "solver",
    "grid",
    "budget",
    "nfe",
    "metric",
    "value",
    "low",
    "high",
    "floor",
    "seconds",
    "memory",
    "failed",
    "samples",
    "seed",
    "library",
)
"""One row per model, solver, grid, budget and metric. budget: evaluations, or below 1 a tolerance. nfe: evaluations per
sample, in the mean. value, low, high: the metric and the ends of its interval; floor: what exact samples show. seconds:
of sampling; memory: the most bytes of tensors alive at once, per sample (of the accelerator's where the model is on
one); failed: samples that are not finite; samples: how many were drawn."""


class Rows(list[dict[str, Any]]):
    """Rows of a sweep: a plain list of dictionaries with the keys `COLUMNS`."""

    def where(self, **values: Any) -> Rows:
        """The rows with these values, for example `rows.where(metric="sw2", budget=10)`.

        Raises InvalidArgumentError for a column that there is none of.
        """
        unknown = values.keys() - set(COLUMNS)
        if unknown:
            raise InvalidArgumentError(f"rows have no column {sorted(unknown)[0]!r}; they have {', '.join(COLUMNS)}")
        return Rows(row for row in self if all(row[key] == value for key, value in values.items()))

    def each(self, column: str) -> list[Any]:
        """The values of a column, each once, in order."""
        return list(dict.fromkeys(row[column] for row in self))

    def write(self, path: str | os.PathLike[str]) -> None:
        """A CSV file with a line of names; values that are not there are empty.

        Raises:
            WriteError: It cannot be written; a file that was there is as it was.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self)
        files.write(path, text.getvalue())

    def frame(self) -> Any:
        """A pandas DataFrame. Raises InvalidArgumentError without pandas."""
        try:
            import pandas
        except ImportError:
            raise InvalidArgumentError("a DataFrame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self, columns=COLUMNS)
