"""One row as it was read, and the reason why a row can be no request."""

import difflib
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from batchrun.records import JsonObject

NOTHING: frozenset[str] = frozenset()
_SHOWN = 12


class RowProblem(Exception):  # noqa: N818 - a value in the making: it ends as a BadRow
    """Why no request can be made of a row; the survey counts it, the run goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.consumed = NOTHING  # columns that the row's form would have sent


class NoColumn(RowProblem):
    """A template asks for a column that the row has not, or has as null."""

    def __init__(self, column: str) -> None:
        super().__init__(f"the template's column `{column}` is missing")
        self.column = column


class Row(Struct):
    """One row of a source, decoded. Where `data` is null, `problem` says why."""

    row: int  # place in the whole source, from 0
    source: str
    line: int | None  # from 1; null in Parquet
    data: JsonObject | None  # Parquet: what may be sent or fill a template, nulls left out
    raw: bytes = b""  # the line, where there are lines
    problem: str = ""
    columns: tuple[str, ...] = ()  # Parquet: all columns of the file
    carried: tuple[Any, ...] = ()  # Parquet: the pinned columns, in their stored types

    @property
    def names(self) -> tuple[str, ...]:
        return self.columns or tuple(self.data or ())

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.source}:{self.line}" if self.line else f"{self.source}, row {self.row}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Ends a message: the known word that may have been meant, and which there are."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    there = f"the columns are {shown}" if names else "there are no columns"
    return f"did you mean `{near[0]}`? ({there})" if near else there
