"""Which rows earlier commands have completed, and which are still to be sent, or sent again.

A row is known by its name, its request by a hash. In memory it takes 2 bytes for each row.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import valid_text
from batchrun.formats.printable import one_line
from batchrun.inputs.prompt_set import Survey
from batchrun.pricing.price import sum_costs
from batchrun.records import Attempt, BadRow, Earlier, Outcome, Request, Resend, RowKey, Totals
from batchrun.store.complete_rows import (
    CompleteRows,
    EarlierRows,
    Span,
    keys_at,
    read_removed_rows,
    rows_at,
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
    others: int = 0  # complete rows that the source does not hold and that stay, as it only appends
    # 1, in the same order, for each row of status `invalid` that is not as it was: it is dropped.
    dropped_marks: bytearray = bytearray()
    next_row: int | None = None  # of a source that appends: the number of its first new row
    lost: int = 0  # rows that were complete and have no outcome on disk any more; sent again
    postponed: int = 0  # rows whose request changed, beyond the limit of this command
    warnings: tuple[str, ...] = ()


# What has changed in complete rows, by their positions in `CompleteRows`; these are mapped to
# their rows of the source.
Explain = Callable[[Mapping[int, int]], Mapping[int, Sequence[str]]]


def match_rows(
    survey: Survey,
    run_dir: RunDir,
    resend: Resend,
    limit: int | None = None,
    excluded: bytearray | None = None,
    *,
    appends: bool = False,
    explain: Explain = lambda _changed: {},
) -> Resumed:
    """What is sent of a source, up to row `limit`, with a run directory as it is.

    `excluded` marks rows that this command does not ask for; `appends`: complete rows that the
    source lacks stay as they are.
    Raises `InputError` where a complete row changed or was removed and `resend` does not say that
    this is meant; `StoreError`.
    """
    before = run_dir.complete_rows(resend if resend.is_asked else None)
    sent_rows = survey.rows if limit is None else min(limit, survey.rows)
    found = _Matches(survey, before, sent_rows, excluded)
    found.match()
    others = 0
    if appends:
        others, found.removed = len(found.removed), []
    found.drop_removed_bad()
    lost, missing = _lost(run_dir, before.totals.rows)
    if not resend.changed:
        if missing:
            raise InputError(f"{_missing_in_words(missing, run_dir)}\n{_FIX_PARTS}")
        known = read_removed_rows(run_dir.path)
        removed = [index for index in found.removed if not _holds(known, before.ids[index])]
        if found.changed or removed:
            raise InputError(_differences(found.changed, removed, before, run_dir, survey, explain))
    found.send_changed()
    removed_totals, marks = Totals(), bytearray()
    if found.removed:
        marks = bytearray(len(before.rows))
        for index in found.removed:
            marks[index] = 1
        removed_totals = totals_at(run_dir.path, marks)
    totals = before.totals.without(removed_totals)
    if 1 in found.dropped:
        totals = totals.without(totals_at(run_dir.path, found.dropped))
    return Resumed(
        complete=found.complete,
        again=found.again,
        spans=tuple(
            Span(before.parts[part][0], first, last)
            for part, (first, last) in sorted(found.spans.items())
        ),
        totals=totals,
        resent=totals_at(run_dir.path, found.marks) if 1 in found.marks else Totals(),
        removed=removed_totals,
        removed_marks=marks,
        others=others,
        dropped_marks=found.dropped,
        next_row=max(before.rows, default=-1) + 1 if appends else None,
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
        self.dropped = bytearray(len(before.bad))  # by index: 1 for each bad row that is replaced
        self._survey, self._before = survey, before
        self._sent_rows, self._excluded = sent_rows, excluded
        self._ends = [end for _, end in before.parts]

    def match(self) -> None:
        """Finds where each complete row is now, or that it was removed."""
        before, ids = self._before, self._survey.ids
        rows = self._survey.rows
        elsewhere = array("q")  # indexes of rows that moved or were removed
        for index, row in enumerate(before.rows):
            if row < rows and (ids is None or ids[row] == before.ids[index]):
                self._match(index, row)
            else:
                elsewhere.append(index)
        if ids is None or not elsewhere:
            self.removed += elsewhere
        elif len(elsewhere) <= rows:
            by_id = {before.ids[index]: index for index in elsewhere}
            for row, key in enumerate(ids):
                if (found := by_id.pop(key, None)) is not None:
                    self._match(found, row)
            self.removed += sorted(by_id.values())
        else:  # few rows are appended to many
            places = {key: row for row, key in enumerate(ids)}
            for index in elsewhere:
                if (place := places.get(before.ids[index])) is not None:
                    self._match(index, place)
                else:
                    self.removed.append(index)

    def _match(self, index: int, row: int) -> None:
        """Whether a complete row is sent again, now that it is found."""
        before = self._before
        if self._survey.hashes[row] != before.hashes[index]:
            if before.bad and before.bad[index]:
                self._replace_bad(index, row)
            else:
                self._note_changed(index, row)
        elif before.again and before.again[index]:
            self._send(index, row)
        else:
            self.complete[row] = 1

    def _replace_bad(self, index: int, row: int) -> None:
        """A row that could not be sent is another one now."""
        if self._is_out(row):
            self.complete[row] = 1
            self.postponed += 1
        else:
            self.dropped[index] = 1

    def drop_removed_bad(self) -> None:
        """A bad row without a name is not found again once it is fixed: nothing was paid for it."""
        bad = self._before.bad
        for index in self.removed if bad else ():
            self.dropped[index] = bad[index]
        self.removed = [index for index in self.removed if not (bad and bad[index])]

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
    changed: Sequence[int],
    removed: Sequence[int],
    before: CompleteRows,
    run_dir: RunDir,
    survey: Survey,
    explain: Explain,
) -> str:
    """`changed`: pairs of index and row."""
    rows = dict(zip(changed[::2], changed[1::2], strict=True))
    lines: list[str] = []
    shown = sorted(rows, key=before.rows.__getitem__)[:_SHOWN]
    how = explain({index: rows[index] for index in shown})
    names = dict(zip(shown, _names(shown, before, run_dir), strict=True))
    for at, index in enumerate(shown):
        lines.append(f"  {names[index]}: its request has changed")
        changes = how.get(index, ())
        if at + 1 == len(shown) or how.get(shown[at + 1], ()) != changes:  # often it is one change
            lines += [f"    {change}" for change in changes]
    lines += [
        f"  {name}: removed" for name in _names(removed, before, run_dir)[: _SHOWN - len(shown)]
    ]
    count = len(rows) + len(removed)
    agree = "1 complete row does" if count == 1 else f"{count:,} complete rows do"
    said = f"{run_dir.path}: {agree} not agree with the input any more:"
    return "\n".join([said, *lines, _fix(bool(rows), bool(removed), survey.ids is not None)])


def _fix(changed: bool, removed: bool, has_ids: bool) -> str:
    append = "give --append, if the input holds further rows only: the others stay as they are"
    other = "start a new run directory with -o"
    rerun = "--rerun-changed, which " + " and ".join(
        [
            *(["sends the changed rows again"] if changed else []),
            *(["leaves the removed rows out of the totals"] if removed else []),
        ]
    )
    if not changed:
        ways = [*([append] if has_ids else []), f"give {rerun}", other]
    else:
        ways = [other, f"give {rerun}"]
    ways.append("restore the input, model and settings that the run was begun with")
    text = "; or ".join(ways)
    return text[0].upper() + text[1:]


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
    found = rows_at(run_dir.path, first)
    names = {index: found[index]["custom_id"][:_NAME] for index in first}
    return [f"{one_line(names[index])} (row {before.rows[index]})" for index in first]


def note_differences(run_dir: RunDir, resumed: Resumed) -> None:
    """The run directory holds what was agreed to before anything is sent. Raises `StoreError`.

    Rows that could not be sent and are not as they were are in no table any more.
    """
    if resumed.lost:
        drop_orphan_calls(run_dir.path)
    write_removed_rows(run_dir.path, resumed.removed_marks)
    if 1 in resumed.dropped_marks:
        keys = keys_at(run_dir.path, resumed.dropped_marks)
        run_dir.drop_rows(keys, resumed.totals, resumed.removed)


def numbered(
    requests: Iterator[Request | BadRow], resumed: Resumed, earlier: "EarlierOutcomes"
) -> Iterator[Request | BadRow]:
    """The requests of a source that appends, with numbers after the greatest that is stored."""
    if resumed.next_row is None:
        yield from requests
        return
    number = resumed.next_row
    for request in requests:
        before = earlier.row_of(request.key)
        yield replace(request, row=number if before is None else before)
        number += before is None


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
        self._earlier: dict[RowKey, Earlier] = {}

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
                found = rows.find(wanted)
                self._earlier |= {one.key: found[one.row] for one in some if again[one.row]}
            yield from some

    def row_of(self, key: RowKey) -> int | None:
        """The number that the tables give the row; null where it is not sent again."""
        earlier = self._earlier.get(key)
        return None if earlier is None else earlier.row

    def join(self, outcome: Outcome) -> Outcome:
        """The outcome, with what the older one of the same row brings along, if there is one."""
        earlier = self._earlier.get(outcome.request.key)
        return outcome if earlier is None else with_earlier(outcome, earlier)

    def replaced(self, outcome: Outcome) -> Totals | None:
        """What the older outcome added to the totals; asked once, when the new one is stored."""
        earlier = self._earlier.pop(outcome.request.key, None)
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
