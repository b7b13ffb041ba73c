"""Which rows and variants of its source a command asks for, and how that is said."""

import operator
from collections.abc import Sequence

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.amounts import plural
from batchrun.formats.printable import nearest
from batchrun.job.sections import Job
from batchrun.records import NOTHING_SENT_AGAIN, Resend


def refuse_unknown(variants: Sequence[str], job: Job) -> None:
    """Raises `JobError` where one is not declared."""
    known = [one.name for one in job.variants]
    for name in variants:
        if name not in known:
            hint = nearest(name, known, "the variants") if known else "the job declares none"
            raise JobError(f"--variant {name}: there is no such variant; {hint}")


class RowSelection(Struct, frozen=True):
    """Which rows of a source a command asks for; by default all that have no outcome."""

    limit: int | None = None  # the first so many
    sample_rows: int = 0  # so many random ones alone; 0: all
    pilot: int = 0  # the same, but of those without an outcome, and their first samples alone
    variants: tuple[str, ...] = ()  # these alone; empty: all
    resend: Resend = NOTHING_SENT_AGAIN


ALL_ROWS = RowSelection()


class AskedRows(Struct, frozen=True):
    """The same of a source that has been read."""

    selection: RowSelection
    job: Job
    rows: int
    excluded: bytearray | None

    def requests(self) -> tuple[int | None, bytearray | None]:
        """The request after which none is asked for, and marks of those that are not."""
        expansion, limit, excluded = self.job.expansion, self.selection.limit, self.excluded
        if excluded is not None and limit is not None:
            limit = _row_of_limit(excluded, limit)
        limit = None if limit is None else limit * expansion.width
        excluded = None if excluded is None else expansion.of_rows(excluded)
        if self.selection.variants:
            others = expansion.others(self.rows, self.selection.variants, expansion.samples)
            excluded = bytearray(map(operator.or_, excluded, others)) if excluded else others
        return limit, excluded

    def in_words(self) -> str:
        """Empty where it is all of them."""
        rows, pilot, variants = self.rows, self.selection.pilot, self.selection.variants
        if pilot:
            return f"pilot: {min(pilot, rows):,} of {plural(rows, 'row')}, drawn at random,"
        some = self._rows_in_words()
        if len(variants) in (0, len(self.job.variants)):
            return some
        only = f"variant {', '.join(variants)}"
        return f"{only}; {some}" if some else only

    def _rows_in_words(self) -> str:
        rows, limit, sample = self.rows, self.selection.limit, self.selection.sample_rows
        fitting = rows if self.excluded is None else self.excluded.count(0)
        is_limited = limit is not None and limit < fitting
        if self.excluded is not None:
            wanted = fitting if limit is None else min(limit, fitting)
            given = {"where": self.job.input.where, "sample": sample, "limit": is_limited}
            said = " and ".join(name for name, is_given in given.items() if is_given)
            return f"{said}: {wanted:,} of {plural(rows, 'row')}" if wanted < rows else ""
        return f"limit: first {limit:,} of {plural(rows, 'row')}" if is_limited else ""


def _row_of_limit(excluded: bytearray, limit: int) -> int:
    """The row before which so many are asked for."""
    row = -1
    for _ in range(limit):
        row = excluded.find(0, row + 1)
        if row < 0:
            return len(excluded)
    return row + 1
