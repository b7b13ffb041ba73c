"""The one full pass over a source: everything is read and checked before anything is sent.

Every walk reads the same bytes: a file that changes between walks, or during one, is an error.

Memory: 18 bytes a row while it runs, 17 after it (hash and name of each row), 9 where rows are
known by their number alone; one more where rows without a bound on their cost are marked. Bad rows
are values here; what makes the whole source unusable raises.
"""

import os
from array import array
from collections.abc import Callable, Iterator

from msgspec import Struct, field
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.inputs import jsonl, parquet
from batchrun.inputs.column_tally import RunCounters
from batchrun.inputs.identity import (
    BY_COLUMN,
    BY_CUSTOM_ID,
    BY_NUMBER,
    FALLBACK,
    NAMELESS,
    Identity,
    find_duplicate,
)
from batchrun.inputs.parquet import Wanted, read_facts
from batchrun.inputs.requests import Draft, RequestMaker, bad_row, drafter
from batchrun.inputs.rows import Row, encode
from batchrun.inputs.sources import Source, SourceFile
from batchrun.limits.answer_sizes import is_bounded
from batchrun.records import BadRow, JsonObject, Layout, Request


class Walk:
    """Remembers each file's size, time and rows, so that later walks can trust and skip."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._stamps: dict[int, tuple[int, int]] = {}
        self._counts: dict[int, int] = {}  # rows of a file that was read to its end

    def rows(
        self, wanted: Wanted, settled: bytearray | None = None, limit: int | None = None
    ) -> Iterator[Row]:
        """Rows that `settled` does not mark, in order, up to `limit`. Raises `InputError`."""
        row = 0
        for index, file in enumerate(self.source.files):
            if limit is not None and row >= limit:
                return
            end = row + self._counts.get(index, 0)
            if row < end and settled is not None and settled.find(0, row, end) < 0:
                row = end
                continue
            handle = self._open(file)
            try:
                self._compare(index, file, handle)
                first = row
                if file.kind == "parquet":
                    row = yield from parquet.read_rows(file, row, settled, limit, wanted)
                else:
                    row = yield from jsonl.read_rows(file, row, settled, limit)
                self._compare(index, file, handle)
                if limit is None or row < limit:
                    self._counts[index] = row - first
            finally:
                os.close(handle)

    def _open(self, file: SourceFile) -> int:
        try:
            return os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"{file.path}: cannot be read ({error.strerror}); check the path and its rights"
            ) from error

    def _compare(self, index: int, file: SourceFile, handle: int) -> None:
        facts = os.fstat(handle)
        stamp = (facts.st_size, facts.st_mtime_ns)
        if self._stamps.setdefault(index, stamp) != stamp:
            raise InputError(
                f"{file.path}: changed while it was being read; leave the input as it is during a "
                "run, then give the same command again"
            )


_STEP = 1_000  # rows between two calls of `on_rows`
_SHOWN = 10
MOST_MODELS = 1_000  # that are remembered
_BAD_ROW_SUFFIX = " (bad row)"

Pair = tuple[tuple[Row, str], tuple[Row, str]]
OnBody = Callable[[int, JsonObject], None]  # a row's number and its body


class Survey(Struct, frozen=True):
    """What the pass found."""

    rows: int
    layout: Layout
    hashes: "array[int]"  # 'Q': the request's hash of each row, or the bad row's
    ids: "array[int] | None"  # 'q': hash(custom_id) of each row; null: known by number alone
    bad_rows: int
    is_bad: bytearray  # 1 for each bad row
    problems: tuple[BadRow, ...]  # the first ten
    body_bytes: int  # sum
    carried_bytes: int  # sum, an estimate
    sent: tuple[str, ...]  # source columns, in order of first appearance
    carried: tuple[str, ...]
    first: Request | None
    warnings: tuple[str, ...]
    models: tuple[str | None, ...]  # the first thousand that rows ask for; null: rows name none
    is_unbounded: bytearray  # 1 where nothing bounds the cost; empty where not asked for


class Found(Struct):
    """What a pass gathers row by row."""

    hashes: "array[int]"
    ids: "array[int]"
    named_by: bytearray  # what named each row
    problems: list[BadRow]
    is_bad: bytearray
    bad_rows: int = 0
    body_bytes: int = 0
    unnamed: Row | None = None  # the first object that only its number names
    unnamed_rows: int = 0
    first: int | None = None  # the first row that can be sent
    models: dict[str | None, None] = field(default_factory=dict)
    is_unbounded: bytearray = field(default_factory=bytearray)

    @property
    def has_names(self) -> bool:
        """Whether any row has a name of its own."""
        return BY_COLUMN in self.named_by or BY_CUSTOM_ID in self.named_by


def read_all(
    walk: Walk,
    maker: RequestMaker,
    identity: Identity,
    tally: RunCounters,
    wanted: Wanted,
    on_rows: Callable[[int], None] | None,
    mark_unbounded: bool,
    on_body: OnBody | None = None,
) -> Found:
    """Every row read, made into a request, counted and dropped. Raises `InputError`."""
    found = Found(
        hashes=array("Q"), ids=array("q"), named_by=bytearray(), problems=[], is_bad=bytearray()
    )
    for file in walk.source.files:
        if file.kind == "parquet":
            tally.add_file(read_facts(file), file.name)
    add_hash, add_id, add_named = found.hashes.append, found.ids.append, found.named_by.append
    add_bad, is_unbounded = found.is_bad.append, found.is_unbounded
    draft_of = drafter(maker, identity)
    body_bytes = 0
    models = found.models
    for row in walk.rows(wanted):
        draft = draft_of(row)
        add_hash(draft.hash)
        add_id(hash(draft.custom_id))
        add_named(draft.named_by)
        body_bytes += len(draft.written)
        if row.columns:
            tally.add_parquet(row, draft.consumed, wanted.used)
        elif row.data is not None:
            tally.add_json(row, draft.consumed)
        add_bad(draft.body is None)
        if mark_unbounded:
            is_unbounded.append(draft.body is not None and not _is_bounded(draft.body))
        if draft.body is None:
            _note_problem(found, row, draft)
        else:
            if found.first is None:
                found.first = row.row
            model = draft.body.get("model")
            if model not in models and len(models) < MOST_MODELS:
                models[model] = None
            if on_body is not None:
                on_body(row.row, draft.body)
        if draft.named_by == BY_NUMBER:
            found.unnamed_rows += 1
            found.unnamed = found.unnamed or row
        if on_rows is not None and row.row % _STEP == _STEP - 1:
            on_rows(row.row + 1)
    found.body_bytes = body_bytes
    return found


def _is_bounded(body: JsonObject) -> bool:
    most = body.get("max_output_tokens")
    return is_bounded(encode(body), most if type(most) is int else None)


def _note_problem(found: Found, row: Row, draft: Draft) -> None:
    found.bad_rows += 1
    if len(found.problems) < _SHOWN:
        found.problems.append(bad_row(row, draft))


def settle_names(
    walk: Walk, found: Found, identity: Identity, *, pinned: bool
) -> tuple[Identity, tuple[str, ...]]:
    """The rule that names the rows, proved to give each its own, and warnings.

    Raises `InputError` for a duplicate.
    """
    warnings: list[str] = []
    if not pinned:
        identity = _set_apart(found, identity)
    if identity.explicit is None and identity.fallback is not None and not pinned:
        reason = _why_not_by_column(walk, found, identity)
        if reason is not None:
            _name_by_number(found)
            identity = _set_apart(found, Identity(None, None, pinned=pinned))
        if reason:
            warnings.append(
                f"{reason}, so rows without `custom_id` are known by their number: rows may be "
                "added at the end later, but not between others. Name a better column with id in "
                "[input]"
            )
    if found.has_names:
        pair = _duplicate(walk, found, identity)
        if pair is not None:
            raise InputError(_twice(pair, found, identity))
        if found.unnamed_rows and identity.explicit is None and not warnings:
            warnings.append(
                f"{found.unnamed_rows:,} of {len(found.ids):,} rows have no `custom_id` and are "
                "known by their number"
            )
    return identity, tuple(warnings)


def _set_apart(found: Found, identity: Identity) -> Identity:
    """The rule under which no bad row goes by a number that is another row's name.

    Ids from 1 to n and one broken line must not stop a run that passes over bad rows.
    """
    if NAMELESS not in found.named_by or not found.has_names:
        return identity
    numbers = {hash(str(row)): row for row, by in enumerate(found.named_by) if by == NAMELESS}
    named = zip(found.ids, found.named_by, strict=True)
    if not any(key in numbers for key, by in named if by not in (NAMELESS, BY_NUMBER)):
        return identity
    apart = Identity(
        identity.explicit, identity.fallback, pinned=False, bad_row_suffix=_BAD_ROW_SUFFIX
    )
    for row in numbers.values():
        found.ids[row] = hash(apart.nameless(row)[0])
    found.problems = [
        replace(problem, custom_id=apart.nameless(problem.row)[0])
        if found.named_by[problem.row] == NAMELESS
        else problem
        for problem in found.problems
    ]
    return apart


def _why_not_by_column(walk: Walk, found: Found, identity: Identity) -> str | None:
    """Why `id` names no rows; empty where there is no such column, null where it does."""
    if BY_COLUMN not in found.named_by:
        return ""
    if found.unnamed is not None:
        return f"column `{FALLBACK}` is missing, null or neither text nor integer in " + (
            found.unnamed.place
        )
    pair = _duplicate(walk, found, identity)
    if pair is None:
        return None
    (one, name), (other, _) = pair
    if BY_COLUMN not in (found.named_by[one.row], found.named_by[other.row]):
        return None  # two of the same `custom_id`: an error, told by the caller
    return f"column `{FALLBACK}` is not unique ({name!r:.60} in {one.place} and {other.place})"


def _name_by_number(found: Found) -> None:
    for row, named_by in enumerate(found.named_by):
        if named_by in (BY_COLUMN, NAMELESS):
            found.ids[row] = hash(str(row))
        if named_by == BY_COLUMN:
            found.named_by[row] = BY_NUMBER
            found.unnamed_rows += 1
    found.problems = [
        replace(problem, custom_id=str(problem.row))
        if found.named_by[problem.row] in (BY_NUMBER, NAMELESS)
        else problem
        for problem in found.problems
    ]


def _duplicate(walk: Walk, found: Found, identity: Identity) -> Pair | None:
    columns = {"custom_id", identity.explicit, identity.fallback}
    wanted = Wanted(used=frozenset(name for name in columns if name is not None))

    def read(numbers: set[int]) -> Iterator[tuple[Row, str]]:
        passed = bytearray(b"\1") * len(found.ids)
        for number in numbers:
            passed[number] = 0
        for row in walk.rows(wanted, passed, max(numbers) + 1):
            yield row, identity.of(row)[0]

    return find_duplicate(found.ids, read)


def _twice(pair: Pair, found: Found, identity: Identity) -> str:
    (one, name), (other, _) = pair
    column = identity.explicit or "custom_id"
    numbered = [row for row in (one, other) if found.named_by[row.row] in (BY_NUMBER, NAMELESS)]
    if numbered:
        return (
            f"{one.place} and {other.place} would both be known as {name!r:.80}: "
            f"{numbered[0].place} gives no name and goes by its number. Give that row a name, or "
            "mend or take out the row"
        )
    return (
        f"duplicate {column} {name!r:.80}: {one.place} and {other.place}. It names the row in the "
        "results, so each must have its own"
    )
