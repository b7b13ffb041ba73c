"""Which rows earlier commands have completed, and which are still to be sent, or sent again.

A row is known by its name, its request by a hash. In memory it takes 2 bytes for each row, and 5
more while it is compared.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import valid_text
from batchrun.formats.printable import one_line
from batchrun.inputs.prompt_set import Survey
from batchrun.pricing.price import sum_costs
from batchrun.records import (
    Attempt,
    BadRow,
    Earlier,
    Outcome,
    Request,
    Resend,
    RowKey,
    Totals,
    shown_key,
)
from batchrun.store.columns import KEY
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
from batchrun.store.unfinished import UnfinishedRows

_SHOWN = 10
_NAME = 80  # letters of a row's id
_ROWS_AT_ONCE = 64  # whose older outcomes are read together, ...
_BYTES_AT_ONCE = 4 << 20  # ... or fewer, where their bodies are large
_FIX_PARTS = (
    "Restore these files; or give --rerun-changed, which sends their rows again and pays for them "
    "again; or start a new run directory with -o"
)


class Resumed(Struct, frozen=True):
    """What earlier commands have completed of a source, and what is sent again."""

    complete: bytearray  # 1 for each request of the source that is not to be sent
    again: bytearray  # 1 for each that has an outcome and is sent again
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
    # Of such a source, by row: the number that the tables give it; below 0: a new one.
    stored_rows: "array[int]" = field(default_factory=lambda: array("q"))
    lost: int = 0  # rows that were complete and have no outcome on disk any more; sent again
    postponed: int = 0  # rows whose request changed, beyond the limit of this command
    warnings: tuple[str, ...] = ()
    adopted: str | None = None  # the variant that rows without one belong to


# What has changed in complete rows, by their positions in `CompleteRows`; these are mapped to
# their rows of the source.
Explain = Callable[[Mapping[int, int]], Mapping[int, Sequence[str]]]


# Of bad rows without a name, by their positions with what stands for it: those fixed since.
FindFixed = Callable[[Mapping[int, str]], Collection[int]]


def match_rows(
    survey: Survey,
    run_dir: RunDir,
    resend: Resend,
    limit: int | None = None,
    excluded: bytearray | None = None,
    *,
    appends: bool = False,
    explain: Explain = lambda _changed: {},
    find_fixed: FindFixed = lambda _names: (),
) -> Resumed:
    """What is sent of a source, up to request `limit`, with a run directory as it is.

    `excluded` marks requests that this command does not ask for; `appends`: complete rows that
    the source lacks stay as they are.
    Raises `InputError` where a complete row changed or was removed and `resend` does not say that
    this is meant; `StoreError`.
    """
    before = run_dir.complete_rows(resend if resend.is_asked else None, survey)
    adopted = None
    if survey.expansion.is_declared:
        adopted = adopt(survey, before, run_dir)
    sent_rows = survey.rows if limit is None else min(limit, survey.rows)
    found = _Matches(survey, before, sent_rows, excluded, appends=appends)
    found.match()
    others = 0
    if appends:
        others = len(found.removed)
        found.removed = _fixed(found.removed, before, run_dir, find_fixed)
        others -= len(found.removed)
    found.drop_removed_bad()
    lost, missing = _lost(run_dir, before.totals.rows)
    if not resend.changed:
        if missing:
            raise InputError(f"{_missing_in_words(missing, run_dir)}\n{_FIX_PARTS}")
        known = read_removed_rows(run_dir.path)
        removed = [index for index in found.removed if not _holds(known, before.key_hash(index))]
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
        next_row=max(map(before.row, range(len(before.rows))), default=-1) + 1 if appends else None,
        stored_rows=found.stored_rows,
        lost=max(0, lost),
        postponed=found.postponed,
        warnings=(
            *_lost_in_words(lost, missing, run_dir),
            *_removed_in_words(found.removed, before, run_dir),
            *_adopted_in_words(adopted, before),
        ),
        adopted=adopted,
    )


def _fixed(
    removed: Sequence[int], before: CompleteRows, run_dir: RunDir, find_fixed: FindFixed
) -> list[int]:
    """Bad rows of an input that appends whose line can be sent now, under another name."""
    bad = [index for index in removed if before.bad and before.bad[index]]
    if not bad:
        return []
    names = {index: row["custom_id"] for index, row in rows_at(run_dir.path, bad).items()}
    return sorted(find_fixed(names))


def adopt(survey: Survey, before: CompleteRows, run_dir: RunDir) -> str | None:
    """The variant whose requests are those of the rows without one, whose numbers then are its.

    None where there are no such rows. Raises `InputError` where it is none of the variants.
    """
    expansion = survey.expansion
    samples, width = expansion.samples, expansion.width
    unnamed = [index for index, is_one in enumerate(before.unnamed) if is_one]
    # The id, sample and hash of each; those of unfinished rows too.
    wanted = [
        (before.ids[at], before.rows[index] % width, before.hashes[at])
        for at, index in enumerate(before.others)
        if before.unnamed and before.unnamed[index] and before.rows[index] >= 0
    ]
    open_rows = [
        (hash(key[0]), key[1], int(mark, 16)) for key, mark in run_dir.unfinished.unnamed()
    ]
    wanted += [one for one in open_rows if one[1] < samples]
    if not unnamed and not open_rows:
        return None
    by_id: dict[int, list[tuple[int, int]]] = {}
    for known, sample, mark in wanted:
        by_id.setdefault(known, []).append((sample, mark))
    counts = [0] * len(expansion.variants)
    ids = survey.ids or (hash(str(row)) for row in range(survey.source_rows))
    for row, known in enumerate(ids):
        for sample, mark in by_id.get(known, ()):
            for at in range(len(counts)):
                counts[at] += survey.hashes[row * width + at * samples + sample] == mark
    best = max(range(len(counts)), key=counts.__getitem__)
    name = expansion.variants[best]
    if not counts[best]:
        removed = read_removed_rows(run_dir.path)
        if all(_holds(removed, before.key_hash(index)) for index in unnamed):
            before.leave_out(unnamed)
            return None
        raise InputError(
            f"{run_dir.path}: it holds {plural(len(unnamed), 'row')} from before variants were "
            "declared, and none of the variants "
            f"({', '.join(map(str, expansion.variants))}) makes the same requests. Declare the "
            "variant that they were sent with, or start a new run directory with -o"
        )
    first = best * samples
    for index, number in enumerate(before.rows):
        is_unnamed = bool(before.unnamed) and before.unnamed[index] == 1
        if not is_unnamed and number >= 0 and number % width // samples == best and unnamed:
            raise InputError(
                f"{run_dir.path}: it holds rows of the variant {name}, and rows without a variant "
                "that would be the same; start a new run directory with -o"
            )
    for index in unnamed:
        if before.rows[index] >= 0:
            before.rows[index] += first
            before.unnamed[index] = 2
    return name


def _adopted_in_words(adopted: str | None, before: CompleteRows) -> tuple[str, ...]:
    if adopted is None or not before.unnamed:
        return ()
    rows = plural(len(before.unnamed) - before.unnamed.count(0), "row")
    return (f"{rows} from before variants were declared: stored as rows of {adopted} from now on",)


class _Matches:
    """Complete rows found again in a source, by the numbers of their requests.

    An index is one into `CompleteRows`.
    """

    def __init__(
        self,
        survey: Survey,
        before: CompleteRows,
        sent_rows: int,
        excluded: bytearray | None = None,
        *,
        appends: bool = False,
    ) -> None:
        self.complete = bytearray(survey.rows)
        self.again = bytearray(survey.rows)
        self.marks = bytearray(len(before.rows))  # by index: 1 for each row sent again
        self.spans: dict[int, tuple[int, int]] = {}  # part to first and last row sent again
        self.changed = array("q")  # pairs of index and number
        self.removed: list[int] = []  # indexes
        self.postponed = 0  # changed rows that are not sent by this command
        self.dropped = bytearray(len(before.bad))  # by index: 1 for each bad row that is replaced
        # In the source, by row: the number that the tables give it; only where rows are appended.
        self.stored_rows = array("q", [-1] * survey.source_rows if appends else ())
        self._width = survey.expansion.width
        self._survey, self._before = survey, before
        self._sent_rows, self._excluded = sent_rows, excluded
        self._ends = [end for _, end in before.parts]

    def match(self) -> None:
        """Finds where each complete row is now, or that it was removed."""
        before, ids, width = self._before, self._survey.ids, self._width
        rows = self._survey.rows
        elsewhere = array("q")  # places in `others` of rows that moved or were removed
        at, others = 0, before.others
        next_other = others[0] if others else -1
        complete, is_plain = self.complete, not (before.again or self.stored_rows)
        for index, number in enumerate(before.rows):
            if index != next_other:  # nearly always
                if is_plain:
                    complete[number] = 1
                else:
                    self._found(index, number)
                continue
            if number < 0:
                self.removed.append(index)
            elif number < rows and (ids is None or ids[number // width] == before.ids[at]):
                self._compare(at, number)
            else:
                elsewhere.append(at)
            at += 1
            next_other = others[at] if at < len(others) else -1
        if ids is None or not elsewhere:
            self.removed += (others[at] for at in elsewhere)
        elif len(elsewhere) <= rows:
            by_key = {
                before.ids[at] * width + before.rows[others[at]] % width: at for at in elsewhere
            }
            for row, key in enumerate(ids):
                for offset in range(width):
                    if (found := by_key.pop(key * width + offset, None)) is not None:
                        self._compare(found, row * width + offset)
            self.removed += (others[at] for at in by_key.values())
        else:  # few rows are appended to many
            places = {key: row for row, key in enumerate(ids)}
            for at in elsewhere:
                if (place := places.get(before.ids[at])) is not None:
                    self._compare(at, place * width + before.rows[others[at]] % width)
                else:
                    self.removed.append(others[at])
        self.removed.sort()

    def _found(self, index: int, number: int) -> None:
        """A complete row whose request is as it was: whether it is sent again."""
        before = self._before
        if self.stored_rows:
            self.stored_rows[number // self._width] = before.row(index)
        if before.again and before.again[index]:
            self._send(index, number)
        else:
            self.complete[number] = 1

    def _compare(self, at: int, number: int) -> None:
        """One of `others` that the source has; its request may be another one."""
        before = self._before
        index = before.others[at]
        if self._survey.hashes[number] == before.hashes[at]:
            self._found(index, number)
            return
        if self.stored_rows:
            self.stored_rows[number // self._width] = before.row(index)
        if before.bad and before.bad[index]:
            self._replace_bad(index, number)
        elif self._survey.ids is None and before.ids[at] != hash(str(number // self._width)):
            self.removed.append(index)  # it had a name, and has none any more
        else:
            self.changed.extend((index, number))

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
            index, number = self.changed[at : at + 2]
            self.postponed += self._is_out(number)
            self._send(index, number)

    def _is_out(self, number: int) -> bool:
        """Whether this command does not ask for the row."""
        excluded = self._excluded
        return number >= self._sent_rows or (excluded is not None and excluded[number] == 1)

    def _send(self, index: int, number: int) -> None:
        if self._is_out(number):
            self.complete[number] = 1
            return
        self.again[number] = self.marks[index] = 1
        row = number // self._width
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
    names = _names(rows, before, run_dir)
    shown = list(names)
    how = explain({index: rows[index] for index in shown})
    for at, index in enumerate(shown):
        lines.append(f"  {names[index]}: its request has changed")
        changes = how.get(index, ())
        if at + 1 == len(shown) or how.get(shown[at + 1], ()) != changes:  # often it is one change
            lines += [f"    {change}" for change in changes]
    for index, name in list(_names(removed, before, run_dir).items())[: _SHOWN - len(shown)]:
        what = "removed" if before.rows[index] >= 0 else "not asked for any more"
        lines.append(f"  {name}: {what}")
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
    return (f"{warning}: {', '.join(names.values())}{tail}",)


def _names(indexes: Iterable[int], before: CompleteRows, run_dir: RunDir) -> dict[int, str]:
    """Of the first ten, in the order of their rows: `q17 (row 16)`."""
    first = sorted(indexes, key=before.row)[:_SHOWN]
    found = rows_at(run_dir.path, first, KEY)
    keys = {
        index: (row["custom_id"], row["sample"], row["variant"]) for index, row in found.items()
    }
    first.sort(key=lambda index: (before.row(index), keys[index][2] or "", keys[index][1]))
    return {index: f"{_name(keys[index])} (row {before.row(index)})" for index in first}


def _name(key: RowKey) -> str:
    """`q17`, or `q17|low|3`."""
    return one_line(shown_key((key[0][:_NAME], *key[1:])))


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


def numbered(requests: Iterator[Request | BadRow], resumed: Resumed) -> Iterator[Request | BadRow]:
    """The requests of a source that appends, with numbers after the greatest that is stored."""
    if resumed.next_row is None:
        yield from requests
        return
    numbers, number = resumed.stored_rows, resumed.next_row
    for request in requests:
        if numbers[request.row] < 0:
            numbers[request.row] = number
            number += 1
        yield replace(request, row=numbers[request.row])


def with_background_ids(
    requests: Iterator[Request | BadRow], unfinished: UnfinishedRows
) -> Iterator[Request | BadRow]:
    """The requests; those begun in background by an earlier command know their response."""
    if not unfinished:  # mostly so: a row is read with less
        yield from requests
        return
    for request in requests:
        begun = unfinished.begun(request.key)
        if isinstance(request, Request) and begun is not None and begun.hash == request.hash:
            yield replace(request, resume_id=begun.response_id)
        else:
            yield request


class EarlierOutcomes:
    """Older outcomes of the rows that are sent again, from reading the row to counting it."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._rows = EarlierRows(spans)
        self._earlier: dict[RowKey, Earlier] = {}

    def __bool__(self) -> bool:
        """Whether there is any at the moment."""
        return bool(self._earlier)

    def read_ahead(
        self,
        requests: Iterator[Request | BadRow],
        is_again: Callable[[Request | BadRow], object],
    ) -> Iterator[Request | BadRow]:
        """The requests, once the older outcomes of those sent again are read. `StoreError`."""
        while some := _read_some(requests):
            wanted = {_key(one): one.row for one in some if is_again(one)}
            if wanted:
                self._earlier.update(self._rows.find(wanted))
            yield from some

    def join(self, outcome: Outcome) -> Outcome:
        """The outcome, with what the older one of the same row brings along, if there is one."""
        earlier = self._earlier.get(_key(outcome.request))
        return outcome if earlier is None else with_earlier(outcome, earlier)

    def replaced(self, outcome: Outcome) -> Totals | None:
        """What the older outcome added to the totals; asked once, when the new one is stored."""
        earlier = self._earlier.pop(_key(outcome.request), None)
        return None if earlier is None else earlier.totals


def _key(request: Request | BadRow) -> RowKey:
    """As tables hold it."""
    return valid_text(request.custom_id), request.sample, request.variant


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
