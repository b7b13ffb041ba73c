"""What earlier commands have settled, told from what is still to be sent, or sent again.

A row is known by its name, its request by a hash. What is kept is 2 bytes for each row.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.formats.amounts import plural
from batchrun.formats.printable import one_line
from batchrun.inputs.survey import Survey
from batchrun.pricing.price import sum_costs
from batchrun.records import Attempt, Earlier, Outcome, Resend, Totals
from batchrun.store.complete_rows import (
    CompleteRows,
    Span,
    names_at,
    read_removed_rows,
    totals_at,
    write_removed_rows,
)
from batchrun.store.reading import expected_rows, missing_parts
from batchrun.store.run_dir import RunDir
from batchrun.store.sealing import drop_orphan_calls

_SHOWN = 10
_NAME = 80  # letters of a row's id
_MEND = (
    "Give back the input, model and settings that the run was begun with; or give --rerun-changed, "
    "which sends the changed rows again and leaves those that are gone out of the totals; or start "
    "a new run directory with -o"
)
_MEND_PARTS = (
    "Put these files back; or give --rerun-changed, which sends their rows again and pays for them "
    "again; or start a new run directory with -o"
)


class Resumed(Struct, frozen=True):
    """What is left of a source by earlier commands, and what they leave to this one."""

    settled: bytearray  # 1 for each row of the source that is not to be sent
    again: bytearray  # 1 for each row that has an outcome and is sent again
    spans: tuple[Span, ...] = ()  # where the older outcomes of these stand
    totals: Totals = Totals()  # of the settled rows that the source holds
    resent: Totals = Totals()  # of them, those sent again, as they stand
    gone: Totals = Totals()  # of settled rows that the source does not hold any more
    gone_marks: bytearray = bytearray()  # 1 for each of these, if any, as in `CompleteRows`
    lost: int = 0  # settled rows that are not there any more, and are sent again
    postponed: int = 0  # rows whose request changed, beyond the limit of this command
    warnings: tuple[str, ...] = ()


def tell_settled(
    survey: Survey, run_dir: RunDir, resend: Resend, limit: int | None = None
) -> Resumed:
    """What is sent of a source, up to row `limit`, with a run directory as it stands.

    Raises `InputError` where a settled row changed or is gone and `resend` does not say that this
    is meant; `StoreError`.
    """
    before = run_dir.complete_rows(resend if resend.is_asked else None)
    found = _Found(survey, before, survey.rows if limit is None else min(limit, survey.rows))
    found.match()
    lost, missing = _lost(run_dir, before.totals.rows)
    if not resend.changed:
        if missing:
            raise InputError(_missing_in_words(missing, run_dir) + f"\n{_MEND_PARTS}")
        known = read_removed_rows(run_dir.path)
        left = [index for index in found.gone if not _holds(known, before.ids[index])]
        if found.changed or left:
            raise InputError(_differences(found.changed[::2], left, before, run_dir))
    found.send_changed()
    resent = totals_at(run_dir.path, found.marks) if 1 in found.marks else Totals()
    gone, marks = Totals(), bytearray()
    if found.gone:
        marks = bytearray(len(before.rows))
        for index in found.gone:
            marks[index] = 1
        gone = totals_at(run_dir.path, marks)
    return Resumed(
        settled=found.settled,
        again=found.again,
        spans=tuple(
            Span(before.parts[part][0], first, last)
            for part, (first, last) in sorted(found.spans.items())
        ),
        totals=before.totals.without(gone),
        resent=resent,
        gone=gone,
        gone_marks=marks,
        lost=max(0, lost),
        postponed=found.postponed,
        warnings=(
            *_lost_in_words(lost, missing, run_dir),
            *_gone_in_words(found, before, run_dir),
        ),
    )


class _Found:
    """Settled rows found again in a source. An index is a place in `CompleteRows`."""

    def __init__(self, survey: Survey, before: CompleteRows, sent_rows: int) -> None:
        self.settled = bytearray(survey.rows)
        self.again = bytearray(survey.rows)
        self.marks = bytearray(len(before.rows))  # by index: 1 for each row sent again
        self.spans: dict[int, tuple[int, int]] = {}  # part to first and last row sent again
        self.changed = array("q")  # pairs of index and row
        self.gone: list[int] = []  # indexes
        self.postponed = 0  # changed rows that are not sent by this command
        self._survey, self._before, self._sent_rows = survey, before, sent_rows
        self._ends = [end for _, end in before.parts]

    def match(self) -> None:
        """Each settled row is found where it stands now, or it is gone."""
        before, ids = self._before, self._survey.ids
        rows = self._survey.rows
        elsewhere: dict[int, int] = {}  # id to index, of rows that moved or left
        for index, row in enumerate(before.rows):
            if row < rows and (ids is None or ids[row] == before.ids[index]):
                self._place(index, row)
            else:
                elsewhere[before.ids[index]] = index
        for row, key in enumerate(ids or () if elsewhere else ()):
            index = elsewhere.pop(key, -1)
            if index >= 0:
                self._place(index, row)
        self.gone += sorted(elsewhere.values())

    def _place(self, index: int, row: int) -> None:
        """What comes of a settled row that stands there now."""
        before = self._before
        if self._survey.hashes[row] != before.hashes[index]:
            self._note_changed(index, row)
        elif before.again and before.again[index]:
            self._send(index, row)
        else:
            self.settled[row] = 1

    def send_changed(self) -> None:
        """The changed rows are sent again."""
        for at in range(0, len(self.changed), 2):
            index, row = self.changed[at : at + 2]
            self.postponed += row >= self._sent_rows
            self._send(index, row)

    def _note_changed(self, index: int, row: int) -> None:
        if self._survey.ids is None and self._before.ids[index] != hash(str(row)):
            self.gone.append(index)  # it had a name, and has none any more
        else:
            self.changed.extend((index, row))

    def _send(self, index: int, row: int) -> None:
        if row >= self._sent_rows:
            self.settled[row] = 1
            return
        self.again[row] = self.marks[index] = 1
        part = bisect_right(self._ends, index)
        if part < len(self._ends):  # a dry run may leave rows in the journal
            first, last = self.spans.get(part, (row, row))
            self.spans[part] = (min(first, row), max(last, row))


def _holds(known: "array[int]", key: int) -> bool:
    at = bisect_left(known, key)
    return at < len(known) and known[at] == key


def _lost(run_dir: RunDir, rows: int) -> tuple[int, dict[str, int]]:
    """How many settled rows are not there any more, and the parts that are missing then."""
    if run_dir.record is None:
        return 0, {}
    lost = expected_rows(run_dir.path, run_dir.record) - rows
    if lost <= 0:
        return lost, {}
    return lost, missing_parts(run_dir.path, run_dir.record, lambda: rows)


def _missing_in_words(missing: dict[str, int], run_dir: RunDir) -> str:
    lines = [f"  {name} ({plural(rows, 'row')})" for name, rows in list(missing.items())[:_SHOWN]]
    lines += [f"  and {len(missing) - _SHOWN:,} more"] if len(missing) > _SHOWN else []
    return "\n".join([f"{run_dir.path}: parts that hold answers are missing:", *lines])


def _lost_in_words(lost: int, missing: dict[str, int], run_dir: RunDir) -> tuple[str, ...]:
    """What is said of settled rows that are not there and are sent again."""
    if lost <= 0:
        return ()
    if missing:
        return (f"{_missing_in_words(missing, run_dir)}\n  Their rows are sent again",)
    rows = "1 settled row is" if lost == 1 else f"{lost:,} settled rows are"
    why = "the machine lost power, or files of the run directory were damaged, changed or deleted"
    return (f"{rows} not there any more, to be sent again: {why}",)


def _differences(
    changed: Sequence[int], gone: Sequence[int], before: CompleteRows, run_dir: RunDir
) -> str:
    lines = []
    for indexes, said in ((changed, "its request is another one now"), (gone, "gone")):
        first = sorted(indexes, key=before.rows.__getitem__)[:_SHOWN]
        names = names_at(run_dir.path, first)
        lines += [
            f"  {one_line(names[index][:_NAME])} (row {before.rows[index]}): {said}"
            for index in first
        ]
    count = len(changed) + len(gone)
    rows = "1 settled row does" if count == 1 else f"{count:,} settled rows do"
    return (
        f"{run_dir.path}: {rows} not agree with the input any more:\n"
        + "\n".join(lines[:_SHOWN])
        + f"\n{_MEND}"
    )


def _gone_in_words(found: _Found, before: CompleteRows, run_dir: RunDir) -> tuple[str, ...]:
    if not found.gone:
        return ()
    first: Sequence[int] = sorted(found.gone, key=before.rows.__getitem__)[:_SHOWN]
    names = names_at(run_dir.path, first)
    more = len(found.gone) - len(first)
    rows = "1 settled row is" if len(found.gone) == 1 else f"{len(found.gone):,} settled rows are"
    said = ", ".join(f"{names[index]} (row {before.rows[index]})" for index in first)
    tail = f" and {more:,} more" if more else ""
    warning = f"{rows} not in the input any more, kept in the tables and left out of the totals"
    return (f"{warning}: {said}{tail}",)


def note_differences(run_dir: RunDir, resumed: Resumed) -> None:
    """The run directory holds what was agreed to before anything is sent. Raises `StoreError`."""
    if resumed.lost:
        drop_orphan_calls(run_dir.path)
    write_removed_rows(run_dir.path, resumed.gone_marks)


def with_earlier(outcome: Outcome, earlier: Earlier) -> Outcome:
    """The outcome of a row that was sent again, with the attempts before and their cost."""
    return replace(after_attempts(outcome, earlier.attempts), replaces=True)


def after_attempts(outcome: Outcome, before: tuple[Attempt, ...]) -> Outcome:
    """The outcome with these attempts before its own."""
    attempts = (*before, *outcome.attempts)
    counted = outcome.counted
    return replace(
        outcome,
        attempts=attempts,
        cost_usd=sum_costs([attempt.cost_usd for attempt in attempts]) if attempts else None,
        counted=counted + len(before) if counted >= 0 else counted,
    )
