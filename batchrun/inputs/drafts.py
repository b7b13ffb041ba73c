"""A row's name, body and hash in one go: what the survey and the run both need of it."""

from array import array
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from batchrun.inputs.identity import Identity
from batchrun.inputs.json_text import encode_anyhow
from batchrun.inputs.requests import RequestMaker, as_sent, canonical, digest
from batchrun.inputs.rows import NOTHING, Row, RowProblem
from batchrun.records import BadRow, JsonObject


class Draft(Struct):
    """A request in the making, or the problem that stands in its way."""

    custom_id: str
    named_by: int
    consumed: frozenset[str]  # columns that are not carried, unless [input] carry says so
    body: JsonObject | None
    written: bytes  # the body as JSON: as it is hashed, or as it is sent where the hash is known
    hash: int
    problem: str = ""


def drafter(
    maker: RequestMaker, identity: Identity, hashes: "array[int] | None" = None
) -> Callable[[Row], Draft]:
    """What makes drafts; they raise `InputError` alone.

    `hashes` are known from an earlier reading: to make them anew takes a third of the time.
    """
    make, name_of = maker.make, identity.of
    nothing = maker.consumed(NOTHING)

    def draft(row: Row) -> Draft:
        consumed = nothing
        try:
            body, consumed = make(row)
            name, named_by = name_of(row)
            if hashes is not None:
                return Draft(name, named_by, consumed, body, as_sent(body), hashes[row.row])
            data = canonical(body)
            return Draft(name, named_by, consumed, body, data, digest(data))
        except RowProblem as error:
            problem = error
        try:
            name, named_by = name_of(row)
        except RowProblem:
            name, named_by = identity.nameless(row.row)
        consumed = problem.consumed or consumed
        # Of a row without lines, what may be sent tells it from others.
        data = row.raw.strip() if row.line is not None else encode_anyhow(row.data)
        return Draft(name, named_by, consumed, None, b"", digest(data), problem.message)

    return draft


def bad_row(row: Row, draft: Draft, carried: tuple[Any, ...] = ()) -> BadRow:
    """The row as one that is never sent."""
    return BadRow(
        row=row.row,
        custom_id=draft.custom_id,
        source=row.source,
        line=row.line,
        message=draft.problem,
        hash=hash_text(draft.hash),
        carried=carried,
    )


def hash_text(number: int) -> str:
    """16 hex digits."""
    return f"{number:016x}"
