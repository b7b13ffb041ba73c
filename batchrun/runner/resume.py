"""Which rows earlier commands have completed, and which are still to be sent, or sent again.

A row is known by its name, its request by a hash. In memory it takes 2 bytes for each row.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import valid_text
from batchrun.formats.printable import one_line
from batchrun.inputs.prompt_set import Survey
from batchrun.pricing.price import sum_costs
from batchrun.records import Attempt, BadRow, Earlier, Outcome, Request, Resend, Totals
from batchrun.store.complete_rows import (
    CompleteRows,
    EarlierRows,
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
_ROWS_AT_ONCE = 64  # whose older outcomes are read together, ...
_BYTES_AT_ONCE = 4 << 20  # ... or fewer, where their bodies are large
_FIX = (
    "Restore the input, model and settings that the run was begun with; or give --rerun-changed, "
    "which sends the changed rows again and leaves the removed rows out of the totals; or start a "
    "new run directory with -o"
)
_FIX_PARTS = (
    "Put these files back; or give --rerun-changed, which sends their rows again and pays for them "
    "again; or start a new run directory with -o"
)


class Resumed(Struct, frozen=True):
    """What earlier commands have completed of a source, and what is sent again."""

    complete: bytearray  # 1 for each row of the source that is not to be sent
    again: bytearray  # 1 for each row that has an outcome and is sent again
    spans: tuple[Span, ...] = ()  # where the older outcomes of these are
    totals: Totals = Totals()  # of the complete rows that the source holds
    resent: Totals = Totals()  # of them, those sent again, by their older outcomes
    removed: Totals = Totals()  # of complete rows that the source does not hold any more
    removed_marks: bytearray = (
        bytearray()
    )  # 1 for each of these, in the order of `CompleteRows`, if any
    lost: int = 0  # rows that were complete and have no outcome on disk any more; sent again
    postponed: int = 0  # rows whose request changed, beyond the limit of this command
    warnings: tuple[str, ...] = ()


def match_rows(
    survey: Survey,
    run_dir: RunDir,
    resend: Resend,
    limit: int | None = None,
    excluded: bytearray | None = None,
) -> Resumed:
    """What is sent of a source, up to row `limit`, with a run directory as it is.

    `excluded` marks rows that this command does not ask for.
    Raises `InputError` where a complete row changed or was removed and `resend` does not say that
    this is meant; `StoreError`.
    """
    before = run_dir.complete_rows(resend if resend.is_asked else None)
    sent_rows = survey.rows if limit is None else min(limit, survey.rows)
    found = _Matches(survey, before, sent_rows, excluded)
    found.match()
    lost, missing = _lost(run_dir, before.totals.rows)
    if not resend.changed:
        if missing:
            raise InputError(f"{_missing_in_words(missing, run_dir)}\n{_FIX_PARTS}")
        known = read_removed_rows(run_dir.path)
        removed = [index for index in found.removed if not _holds(known, before.ids[index])]
        if found.changed or removed:
            raise InputError(_differences(found.changed[::2], removed, before, run_dir))
    found.send_changed()
    removed_totals, marks = Totals(), bytearray()
    if found.removed:
        marks = bytearray(len(before.rows))
        for index in found.removed:
            marks[index] = 1
        removed_totals = totals_at(run_dir.path, marks)
    return Resumed(
        complete=found.complete,
        again=found.again,
        spans=tuple(
            Span(before.parts[part][0], first, last)
            for part, (first, last) in sorted(found.spans.items())
        ),
        totals=before.totals.without(removed_totals),
        resent=totals_at(run_dir.path, found.marks) if 1 in found.marks else Totals(),
        removed=removed_totals,
        removed_marks=marks,
        lost=max(0, lost),
        postponed=found.postponed,
        warnings=(
            *_lost_in_words(lost, missing, run_dir),
            *_removed_in_words(found.removed, before, run_dir),
        ),
    )


class _Matches:
    """Complete rows found again in a source. An index is one into `CompleteRows`."""

    def __init__(
        self,
        survey: Survey,
        before: CompleteRows,
        sent_rows: int,
        excluded: bytearray | None = None,
    ) -> None:
        self.complete = bytearray(survey.rows)
        self.again = bytearray(survey.rows)
        self.marks = bytearray(len(before.rows))  # by index: 1 for each row sent again
        self.spans: dict[int, tuple[int, int]] = {}  # part to first and last row sent again
        self.changed = array("q")  # pairs of index and row
        self.removed: list[int] = []  # indexes
        self.postponed = 0  # changed rows that are not sent by this command
        self._survey, self._before = survey, before
        self._sent_rows, self._excluded = sent_rows, excluded
        self._ends = [end for _, end in before.parts]

    def match(self) -> None:
        """Finds where each complete row is now, or that it was removed."""
        before, ids = self._before, self._survey.ids
        rows = self._survey.rows
        elsewhere: dict[int, int] = {}  # id to index, of rows that moved or were removed
        for index, row in enumerate(before.rows):
            if row < rows and (ids is None or ids[row] == before.ids[index]):
                self._match(index, row)
            else:
                elsewhere[before.ids[index]] = index
        for row, key in enumerate(ids or () if elsewhere else ()):
            index = elsewhere.pop(key, -1)
            if index >= 0:
                self._match(index, row)
        self.removed += sorted(elsewhere.values())

    def _match(self, index: int, row: int) -> None:
        """Whether a complete row is sent again, now that it is found."""
        before = self._before
        if self._survey.hashes[row] != before.hashes[index]:
            self._note_changed(index, row)
        elif before.again and before.again[index]:
            self._send(index, row)
        else:
            self.complete[row] = 1

    def send_changed(self) -> None:
        """The changed rows are sent again."""
        for at in range(0, len(self.changed), 2):
            index, row = self.changed[at : at + 2]
            self.postponed += self._is_out(row)
            self._send(index, row)

    def _is_out(self, row: int) -> bool:
        """Whether this command does not ask for the row."""
        excluded = self._excluded
        return row >= self._sent_rows or (excluded is not None and excluded[row] == 1)

    def _note_changed(self, index: int, row: int) -> None:
        if self._survey.ids is None and self._before.ids[index] != hash(str(row)):
            self.removed.append(index)  # it had a name, and has none any more
        else:
            self.changed.extend((index, row))

    def _send(self, index: int, row: int) -> None:
        if self._is_out(row):
            self.complete[row] = 1
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
    """How many complete rows have no outcome on disk any more, and the parts that are missing."""
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
    """The warning about rows that were complete, are not on disk any more and are sent again."""
    if lost <= 0:
        return ()
    if missing:
        return (f"{_missing_in_words(missing, run_dir)}\n  Their rows are sent again",)
    rows = "1 complete row is" if lost == 1 else f"{lost:,} complete rows are"
    why = "the machine lost power, or files of the run directory were damaged, changed or deleted"
    return (f"{rows} not on disk any more, to be sent again: {why}",)


def _differences(
    changed: Sequence[int], removed: Sequence[int], before: CompleteRows, run_dir: RunDir
) -> str:
    lines = []
    for indexes, what in ((changed, "its request has changed"), (removed, "removed")):
        lines += [f"  {name}: {what}" for name in _names(indexes, before, run_dir)]
    count = len(changed) + len(removed)
    rows = "1 complete row does" if count == 1 else f"{count:,} complete rows do"
    return "\n".join(
        [f"{run_dir.path}: {rows} not agree with the input any more:", *lines[:_SHOWN], _FIX]
    )


def _removed_in_words(
    removed: Sequence[int], before: CompleteRows, run_dir: RunDir
) -> tuple[str, ...]:
    if not removed:
        return ()
    names = _names(removed, before, run_dir)
    tail = f" and {len(removed) - len(names):,} more" if len(removed) > len(names) else ""
    rows = "1 complete row is" if len(removed) == 1 else f"{len(removed):,} complete rows are"
    warning = (
        f"{rows} not in the input any more, stored in the tables and not counted in the totals"
    )
    return (f"{warning}: {', '.join(names)}{tail}",)


def _names(indexes: Sequence[int], before: CompleteRows, run_dir: RunDir) -> list[str]:
    """Of the first ten: `q17 (row 16)`."""
    first = sorted(indexes, key=before.rows.__getitem__)[:_SHOWN]
    names = names_at(run_dir.path, first)
    return [f"{one_line(names[index][:_NAME])} (row {before.rows[index]})" for index in first]


def note_differences(run_dir: RunDir, resumed: Resumed) -> None:
    """The run directory holds what was agreed to before anything is sent. Raises `StoreError`."""
    if resumed.lost:
        drop_orphan_calls(run_dir.path)
    write_removed_rows(run_dir.path, resumed.removed_marks)


def with_background_ids(
    requests: Iterator[Request | BadRow], run_dir: RunDir
) -> Iterator[Request | BadRow]:
    """The requests; those begun in background by an earlier command know their response."""
    if not run_dir.unfinished:  # mostly so: a row is read with less
        yield from requests
        return
    for request in requests:
        begun = run_dir.unfinished.begun(request.key)
        if isinstance(request, Request) and begun is not None and begun.hash == request.hash:
            yield replace(request, resume_id=begun.response_id)
        else:
            yield request


class EarlierOutcomes:
    """Older outcomes of the rows that are sent again, from reading the row to counting it."""

    def __init__(self, resumed: Resumed) -> None:
        self._resumed = resumed
        self._earlier: dict[int, Earlier] = {}  # by row

    def __bool__(self) -> bool:
        """Whether there is any at the moment."""
        return bool(self._earlier)

    def read_ahead(self, requests: Iterator[Request | BadRow]) -> Iterator[Request | BadRow]:
        """The requests, once the older outcomes of those sent again are read. `StoreError`."""
        again = self._resumed.again
        if not self._resumed.resent.rows:
            yield from requests
            return
        rows = EarlierRows(self._resumed.spans)
        while some := _read_some(requests):
            wanted = {
                (valid_text(one.custom_id), *one.key[1:]): one.row for one in some if again[one.row]
            }
            if wanted:
                self._earlier.update(rows.find(wanted))
            yield from some

    def join(self, outcome: Outcome) -> Outcome:
        """The outcome, with what the older one of the same row brings along, if there is one."""
        earlier = self._earlier.get(outcome.request.row)
        return outcome if earlier is None else with_earlier(outcome, earlier)

    def replaced(self, outcome: Outcome) -> Totals | None:
        """What the older outcome added to the totals; asked once, when the new one is stored."""
        earlier = self._earlier.pop(outcome.request.row, None)
        return None if earlier is None else earlier.totals


def _read_some(requests: Iterator[Request | BadRow]) -> list[Request | BadRow]:
    some: list[Request | BadRow] = []
    size = 0
    for row in requests:
        some.append(row)
        size += len(row.body) if isinstance(row, Request) else 0
        if len(some) == _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            break
    return some


def with_earlier(outcome: Outcome, earlier: Earlier) -> Outcome:
    """The outcome of a row that was sent again, with the attempts before and their cost."""
    return replace(after_attempts(outcome, earlier.attempts), replaces=True)


def after_attempts(outcome: Outcome, before: tuple[Attempt, ...]) -> Outcome:
    """The outcome with these attempts before its own."""
    attempts, counted = (*before, *outcome.attempts), outcome.counted
    return replace(
        outcome,
        attempts=attempts,
        cost_usd=sum_costs([attempt.cost_usd for attempt in attempts]) if attempts else None,
        counted=counted + len(before) if counted >= 0 else counted,
    )
