"""The door of `inputs`: a source found, surveyed once, then read row by row as requests.

Nothing grows with the rows but the survey's arrays. The same job and the same files give the same
requests at each reading.
"""

from array import array
from collections.abc import Callable, Iterator

from batchrun.errors import InputError
from batchrun.formats.nearest import nearest
from batchrun.inputs.carried import Carrier, check_types
from batchrun.inputs.column_tally import RunCounters
from batchrun.inputs.identity import FALLBACK, Identity
from batchrun.inputs.parquet import Wanted
from batchrun.inputs.requests import RequestMaker, bad_row, drafter, hash_text
from batchrun.inputs.sources import Source, SourceFile, find_source
from batchrun.inputs.survey import Found, OnBody, Survey, Walk, read_all, settle_names
from batchrun.job.sections import InputJob
from batchrun.records import BadRow, JsonObject, Layout, Request

__all__ = ["PromptSet", "Source", "SourceFile", "find_source"]


class PromptSet:
    """A source read as one job asks. Raises `JobError` where the job's templates or types are bad.

    It remembers its files, so that a change between two readings is an error, and the hashes that
    the survey made.
    """

    def __init__(self, source: Source, input_job: InputJob, request: JsonObject) -> None:
        check_types(input_job)
        self._source = source
        self._job = input_job
        self._walk = Walk(source)
        self._identity = Identity(input_job.id, None, pinned=False)
        self._maker = RequestMaker(request, input_job, self._identity.consumed)
        used = self._maker.may_use
        names = {"custom_id", input_job.id or FALLBACK, FALLBACK}
        self._used = None if used is None else used | names
        self._hashes: array[int] | None = None

    def survey(
        self,
        pinned: Layout | None,
        on_rows: Callable[[int], None] | None = None,
        *,
        mark_unbounded: bool = False,
        on_body: OnBody | None = None,
    ) -> Survey:
        """Everything read once. `on_rows` is told the rows so far; what it raises passes through.

        `on_body` is told each row's number and the body that is made of it.

        `mark_unbounded` marks the rows whose cost nothing bounds, at some µs a row.
        Raises `InputError` where the source as a whole cannot be used.
        """
        identity = self._rule(pinned)
        self._check_types(pinned)
        tally = RunCounters(self._job, identity.consumed, pinned.columns if pinned else None)
        wanted = Wanted(
            used=self._used, columns=tally.fixed, explicit=frozenset(self._job.types), whole=True
        )
        found = read_all(
            self._walk, self._maker, identity, tally, wanted, on_rows, mark_unbounded, on_body
        )
        self._hashes = found.hashes
        self._check_columns(found, tally)
        identity, warnings = settle_names(self._walk, found, identity, pinned=pinned is not None)
        layout = pinned or Layout(
            id_column=identity.explicit or identity.fallback,
            columns=tally.layout(),
            bad_row_suffix=identity.bad_row_suffix,
        )
        alone = not found.has_names
        return Survey(
            rows=len(found.hashes),
            layout=layout,
            hashes=found.hashes,
            ids=None if alone else found.ids,
            bad_rows=found.bad_rows,
            is_bad=found.is_bad,
            problems=tuple(found.problems),
            body_bytes=found.body_bytes,
            carried_bytes=tally.carried_bytes,
            sent=tally.sent(self._maker.in_templates(tally.columns)),
            carried=tuple(column.column for column in layout.columns),
            first=self._first(layout, found),
            warnings=warnings,
            models=tuple(found.models),
            is_unbounded=found.is_unbounded,
        )

    def requests(
        self, layout: Layout, settled: bytearray, limit: int | None = None
    ) -> Iterator[Request | BadRow]:
        """The rows that `settled` does not mark, lazily and in order, up to row `limit`.

        Raises `InputError` where the files changed since the survey.
        """
        identity = self._rule(layout)
        carry = Carrier(layout, self._job)
        wanted = Wanted(used=self._used, columns=layout.columns, explicit=carry.explicit)
        draft_of = drafter(self._maker, identity, self._hashes)
        if self._hashes is not None:  # a file that has grown since is told by its time
            limit = min(len(self._hashes), len(self._hashes) if limit is None else limit)
        for row in self._walk.rows(wanted, settled, limit):
            draft = draft_of(row)
            body = draft.body
            if body is None:
                values = carry.values(row, draft.consumed) if row.data is not None else ()
                yield bad_row(row, draft, values)
                continue
            model, most = body.get("model"), body.get("max_output_tokens")
            yield Request(
                row=row.row,
                custom_id=draft.custom_id,
                source=row.source,
                body=draft.written,
                hash=hash_text(draft.hash),
                model=model,
                max_output_tokens=most if type(most) is int else None,
                carried=carry.values(row, draft.consumed),
            )

    def _rule(self, layout: Layout | None) -> Identity:
        """The rule that names rows; as pinned where there is a layout."""
        explicit = self._job.id
        if layout is None:
            return Identity(explicit, None if explicit else FALLBACK, pinned=False)
        if explicit is not None and explicit != layout.id_column:
            was = f"column `{layout.id_column}`" if layout.id_column else "custom_id or number"
            raise InputError(
                f"[input] id is {explicit!r}, but this run has named its rows by {was} since it "
                "began; leave id as it was, or start a new run directory with -o"
            )
        return Identity(
            explicit,
            None if explicit else layout.id_column,
            pinned=True,
            bad_row_suffix=layout.bad_row_suffix,
        )

    def _check_types(self, pinned: Layout | None) -> None:
        for column in pinned.columns if pinned else ():
            asked = self._job.types.get(column.column, column.type)
            if asked != column.type:
                raise InputError(
                    f"[input] types says {asked} for `{column.column}`, but this run has carried "
                    f"it as {column.type} since it began; take that out, or start a new run "
                    "directory with -o"
                )

    def _check_columns(self, found: Found, tally: RunCounters) -> None:
        if not found.hashes:
            raise InputError(f"{self._source.spec}: no rows; the prompt set is empty")
        if not tally.objects:
            return  # not one row can be read: its problems say more
        known = set(tally.columns)
        asked: list[tuple[str, str]] = [("[input] id", self._job.id)] if self._job.id else []
        asked += [("[input] carry", name) for name in self._job.carry or ()]
        asked += [("[input] send", name) for name in self._job.send]
        asked += [("[input] types", name) for name in self._job.types]
        for option, name in asked:
            if name not in known:
                raise InputError(
                    f"{self._source.spec}: {option} names the column `{name}`, which no row has; "
                    + nearest(name, tally.columns, "the columns")
                )

    def _first(self, layout: Layout, found: Found) -> Request | None:
        if found.first is None:
            return None
        passed = bytearray(b"\1") * len(found.hashes)
        passed[found.first] = 0
        for request in self.requests(layout, passed, found.first + 1):
            if isinstance(request, Request):
                return request
        return None
