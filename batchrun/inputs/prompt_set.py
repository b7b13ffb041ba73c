"""The entry point of `inputs`: a source, surveyed once, then read row by row as requests.

The survey is one full pass: everything is read and checked before anything is sent. The same job
and the same files give the same requests at each reading.

A row is one request, or several where the job has samples or variants; requests have numbers (see
`Expansion`), and marks, limits and hashes are those of requests.

Memory: 18 bytes a row during the survey, 17 after it (hash and name of each row), 9 where rows are
known by their number alone; 9 more for each further request of a row; one more where requests
without a bound on their cost are marked. Bad rows are values here; what makes the whole source
unusable raises.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import asdict, replace

from batchrun.dialects.responses import output_limit
from batchrun.dialects.setting_names import SETTINGS
from batchrun.errors import InputError
from batchrun.formats.amounts import plural
from batchrun.formats.printable import nearest
from batchrun.inputs import parquet
from batchrun.inputs.carried import Carrier, check_types
from batchrun.inputs.findings import Findings, VariantFindings, make_findings
from batchrun.inputs.identity import FALLBACK, Identity, RowNames
from batchrun.inputs.jsonl import Wrapped
from batchrun.inputs.parquet import ColumnUse
from batchrun.inputs.requests import BATCH, HASH_RULE, Draft, RequestMaker
from batchrun.inputs.rows import NO_COLUMNS, FilePart, FileSpan, SourceFile, SourceRow
from batchrun.inputs.sources import Source, SourceReader, Stamp, find_source, without_folder
from batchrun.inputs.survey.column_tally import ColumnTally
from batchrun.inputs.survey.survey import MAX_MODELS, Gathered, Survey
from batchrun.job.expansion import Expansion
from batchrun.job.sections import InputJob, Job, VariantJob
from batchrun.limits.answer_sizes import is_bounded
from batchrun.records import BadRow, JsonObject, Layout, Request

__all__ = ["MAX_MODELS", "PromptSet", "Source", "SourceFile", "Survey", "find_source"]

_STEP = 1_000  # rows between two calls of `on_rows`, ...
_STEP_BYTES = 16 << 20  # ... or so many bytes of bodies
_SHOWN = 10

_OPTIONS = {"id": "--id", "carry": "--carry", "send": "--send", "types": "--type"}
_UNSTORABLE = 0x5555_5555_5555_5555

OnBody = Callable[[int, JsonObject], None]  # a request's number and its body


class PinnedSource(Struct, frozen=True):
    """What another process needs to read the same requests of a source, without a survey."""

    source: Source
    stamps: dict[int, Stamp]
    layout: Layout
    hash_rule: int
    is_appended: bool
    has_begun: bool


class PromptSet:
    """A source read as one job asks. Raises `JobError` where the job's templates or types are bad.

    It remembers its files, so that a change between two readings is an error, and the hashes that
    the survey made.
    """

    def __init__(
        self,
        source: Source,
        input_job: InputJob,
        request: JsonObject,
        hash_rule: int = HASH_RULE,
        *,
        samples: int = 1,
        variants: Sequence[VariantJob] = (),
        is_appended: bool = False,
    ) -> None:
        """`hash_rule`: by which the requests are hashed; that of the run, where it has begun.

        `samples`, `variants`: what each row is asked. `is_appended`: rows of other sources stand
        beside these, so that no number names one.
        """
        check_types(input_job)
        self.expansion = Expansion(samples, tuple(one.name for one in variants) or (None,))
        self._variants = variants
        self._is_appended = is_appended
        if input_job.carry is None:
            input_job = replace(input_job, carry=source.carry)
        self._source = source
        self._job = input_job
        named = Identity(input_job.id, None).consumed
        self._request = request
        self._maker = RequestMaker(
            request, input_job, named, hash_rule, samples=samples, variants=variants
        )
        self._maker.look_beside(source.files)
        columns = self._maker.row_columns
        self._wrapped = None if columns is None else Wrapped(columns)
        self._reader = SourceReader(source, self._wrapped)
        self._hash_rule = hash_rule
        used = self._maker.may_use
        if source.carry is not None and used is not None and not self._maker.has_template:
            used &= frozenset(source.carry)  # not the model that answered, and the like
        self._names = frozenset({"custom_id", input_job.id or FALLBACK})
        if any(file.is_keyed for file in source.files):
            self._names |= {"sample", "variant"}
        self._used = None if used is None else used | self._names | {FALLBACK}
        self._hashes: array[int] | None = None
        self._has_begun = False  # a run, with the layout that it has pinned

    @classmethod
    def reopen(cls, pinned: PinnedSource, job: Job) -> Self:
        """As another process has surveyed it, for `part`. Raises as the class itself."""
        made = cls(
            pinned.source,
            job.input,
            job.request,
            pinned.hash_rule,
            samples=job.expand.samples,
            variants=job.variants,
            is_appended=pinned.is_appended,
        )
        made._has_begun = pinned.has_begun
        made._reader.stamps.update(pinned.stamps)
        return made

    def pinned(self, layout: Layout) -> PinnedSource:
        """For another process, after the survey."""
        source, stamps = without_folder(self._source), dict(self._reader.stamps)
        return PinnedSource(
            source, stamps, layout, self._hash_rule, self._is_appended, self._has_begun
        )

    def survey(
        self,
        pinned: Layout | None,
        on_rows: Callable[[int], None] | None = None,
        *,
        mark_unbounded: bool = False,
        on_body: OnBody | None = None,
        in_parts: bool = False,
    ) -> Survey:
        """Everything read once. `on_rows` gets the rows so far; what it raises passes through.

        `on_body` gets each row's number and the body that is made of it. `mark_unbounded` marks
        the rows whose cost nothing bounds, at some µs a row. `in_parts`: so that `file_spans` says
        where other processes may begin to read.
        Raises `InputError` where the source as a whole cannot be used.
        """
        identity = self._identity(pinned)
        self._has_begun = pinned is not None
        self._reader.offsets = {} if in_parts else None
        tally = ColumnTally(self._job, identity.consumed, pinned, self._used)
        self._add_files(tally, identity)
        names, found = RowNames(), Gathered(self.expansion)
        findings, others = self._findings()
        note, add_form, noted = findings.add, findings.forms.append, self._used
        of_batch = self._maker.unsent[BATCH.number]
        if noted is not None and self._source.carry is None:
            noted |= SETTINGS  # to count those that nothing sends
        draft_of, add_hash, add_bad = self._first_draft(), found.hashes.append, found.is_bad.append
        add_id, add_named_by = names.ids.append, names.named_by.append
        told_bytes, width = 0, self.expansion.width
        use = ColumnUse(noted, tally.expected(), check_only=True, sizes=tally.sizes)
        for row in self._reader.rows(use):
            draft, is_misfit = draft_of(row, identity), False
            if row.data is not None and tally.add(row, draft.consumed) and draft.body is not None:
                draft, is_misfit = _unstorable(draft), True
            body = draft.body
            add_hash(draft.hash)
            add_id(hash(draft.custom_id))
            add_named_by(draft.named_by)
            add_bad(body is None)
            if body is not None:
                add_form(draft.form.number)
                given = body.get("input")
                if (
                    draft.form is not BATCH
                    or type(given) is not str
                    or not given
                    or given.isspace()
                    or not of_batch.isdisjoint(row.data or ())
                ):
                    note(row, draft)
            if mark_unbounded:
                bounded = body is None or is_bounded(draft.written, output_limit(body))
                found.is_unbounded.append(not bounded)
            if body is not None:
                found.body_bytes += len(draft.written)
                if len(found.models) < MAX_MODELS:
                    found.models[body.get("model")] = None
                if on_body is not None:
                    on_body(row.row * width, body)
            if others is not None:
                self._add_others(row, identity, draft, found, others, on_body, is_misfit=is_misfit)
            if on_rows is not None and (
                row.row % _STEP == _STEP - 1 or found.body_bytes >= told_bytes + _STEP_BYTES
            ):
                told_bytes = found.body_bytes
                on_rows(row.row + 1)
        self._hashes = found.hashes
        self._check_columns(tally, findings.body_fields)
        identity, warnings = names.prove(identity, self._rows)
        layout = (
            replace(pinned, columns=tally.layout())
            if pinned is not None
            else Layout(
                id_column=identity.explicit or identity.fallback,
                columns=tally.layout(),
                bad_row_suffix=identity.bad_row_suffix,
            )
        )
        if pinned is None and len({file.kind for file in self._source.files}) > 1:
            self._check_again(layout, found)
        first, problems = self._examples(layout, found.is_bad)
        return Survey(
            **asdict(found),
            layout=layout,
            ids=names.ids if names.any_named else None,
            carried_bytes=tally.carried_bytes,
            sent=tally.sent(self._maker.fills),
            carried=tuple(column.column for column in layout.columns),
            first=first,
            problems=tuple(problems),
            warnings=(
                *self._source.warnings,
                *self._said_of_wrapped(),
                *warnings,
                *tally.warnings(),
                *findings.warnings(),
                *(others.warnings() if others is not None else ()),
            ),
            forms=findings.forms_in_words(),
            refusal=findings.refusal(),
        )

    def _add_files(self, tally: ColumnTally, identity: Identity) -> None:
        """What files say of their columns. Raises `InputError`."""
        must_have = not self._job.skip_bad_rows and self._job.where is None
        for file in self._source.files:
            if file.kind == "parquet":
                names = tally.add_file(file)
                if must_have and not self._maker.template_columns <= names:
                    self._check_template(file, identity)

    def _findings(self) -> tuple[Findings, VariantFindings | None]:
        """For one pass over the rows."""
        request, variants = self._request, self._variants
        if variants and "input" in variants[0].request:
            request = {"input": variants[0].request["input"], **request}
        findings = make_findings(request, self._maker, self._job)
        if not self._maker.asked:
            return findings, None
        return findings, VariantFindings(self._maker, self.expansion.samples, variants)

    def _first_draft(self) -> Callable[[SourceRow, Identity], Draft]:
        """Makes the first request of a row."""
        if not self._maker.asked:
            return self._maker.draft
        return partial(self._maker.draft, asked=self._maker.asked[0])

    def _add_others(
        self,
        row: SourceRow,
        identity: Identity,
        draft: Draft,
        found: Gathered,
        findings: VariantFindings,
        on_body: OnBody | None,
        *,
        is_misfit: bool,
    ) -> None:
        """The requests of a row but for the first, whose draft this is.

        `is_misfit`: what the row carries cannot be stored.
        """
        maker, number = self._maker, row.row * self.expansion.width
        marks = bool(found.is_unbounded)
        drafts = []
        for at, asked in enumerate(maker.asked):
            if at:
                draft = maker.draft(row, identity, None, asked)
                draft = _unstorable(draft) if is_misfit and draft.body is not None else draft
            drafts.append(draft)
            for sample in range(maker.alike):
                if at or sample:
                    found.add(draft, mark_unbounded=marks)
                    if on_body is not None and draft.body is not None:
                        on_body(number, draft.body)
                number += 1
        findings.add(drafts)

    def _said_of_wrapped(self) -> Iterator[str]:
        found = self._wrapped.found if self._wrapped is not None else {}
        for name, words in islice(found.items(), _SHOWN):
            yield f"{name}: {words}"
        if len(found) > _SHOWN:
            yield f"{plural(len(found) - _SHOWN, 'more file')}: the rows are in a list too"

    def file_spans(self) -> list[FileSpan]:
        """How each file is read in parts, after a survey for that. Raises `InputError`."""
        return list(self._reader.file_spans())

    @property
    def hashes(self) -> "array[int]":
        """Of all requests, after the survey."""
        return self._hashes if self._hashes is not None else array("Q")

    def spans(self) -> list[tuple[SourceFile, int, int]]:
        """Each file with its first row and how many it has, after the survey."""
        return list(self._reader.spans())

    @property
    def file_names(self) -> frozenset[str]:
        """The files as the column `source` names them."""
        return frozenset(file.name for file in self._source.files)

    def reads(self, path: Path) -> bool:
        """Whether it is one of the files."""
        return any(file.path == path for file in self._source.files)

    def move_to(self, path: Path) -> None:
        """The source's one file, which has not changed, has this path now."""
        (file,) = self._source.files
        self._source = replace(self._source, files=(replace(file, path=path),))
        self._reader.files = self._source.files
        self._maker.look_beside(self._source.files)

    def plain_rows(self) -> Iterator[SourceRow]:
        """All rows as they are read, of Parquet without values. Raises `InputError`."""
        return self._reader.rows(ColumnUse(NO_COLUMNS))

    def json_rows(self) -> Iterator[SourceRow]:
        """The rows of the files that are not Parquet, after the survey. Raises `InputError`."""
        marks = self._all_but(())
        for file, first, rows in self._reader.spans():
            if file.kind != "parquet":
                marks[first : first + rows] = bytes(rows)
        return self._reader.rows(ColumnUse(NO_COLUMNS), marks)

    def _check_template(self, file: SourceFile, identity: Identity) -> None:
        """Raises `InputError` where the first row lacks a column that the file has in no row."""
        first = next(parquet.read_rows(file, 0, bytearray(1), ColumnUse(self._used)), None)
        if first is not None and (draft := self._first_draft()(first, identity)).lacks_column:
            raise InputError(f"{file}: {draft.problem}. Fix the input or the options")

    def _check_again(self, layout: Layout, found: Gathered) -> None:
        """Marks rows that do not fit the types which Parquet files and lines have in common."""
        for row in self.requests(layout, bytearray(found.is_bad)):
            if isinstance(row, BadRow):
                number = self.expansion.number(row)
                found.is_bad[number] = True
                found.hashes[number] ^= _UNSTORABLE

    def requests(
        self, layout: Layout, complete: bytearray, limit: int | None = None
    ) -> Iterator[Request | BadRow]:
        """The requests that `complete` does not mark, lazily and in order, up to number `limit`.

        Raises `InputError` where the files changed since the survey.
        """
        if limit is not None:
            complete = complete[:limit] + b"\1" * max(len(complete) - limit, 0)
        carrier, use = self._carrier(layout)
        rows = self._reader.rows(use, self.expansion.all_of_row(complete))
        return self._made(rows, self._identity(layout), carrier, complete, self._hashes)

    def part(
        self, part: FilePart, layout: Layout, complete: bytearray, hashes: "array[int]"
    ) -> Iterator[Request | BadRow]:
        """The requests of a part that `complete` does not mark, as `requests` gives them.

        `complete` and `hashes`: of the requests of this part. Raises as `requests`.
        """
        carrier, use = self._carrier(layout)
        rows = self._reader.part(part, use, self.expansion.all_of_row(complete))
        return self._made(rows, self._identity(layout), carrier, complete, hashes, part.first)

    def _carrier(self, layout: Layout) -> tuple[Carrier, ColumnUse]:
        carrier = Carrier(layout, self._job, begun=self._has_begun)
        return carrier, ColumnUse(self._used, carrier.columns, carrier.left_out)

    def _made(
        self,
        rows: Iterator[SourceRow],
        identity: Identity,
        carrier: Carrier,
        complete: bytearray,
        hashes: "array[int] | None",
        first: int = 0,
    ) -> Iterator[Request | BadRow]:
        """The requests of rows. `complete` and `hashes` begin with those of row `first`."""
        if self._maker.asked:
            yield from self._expanded(rows, identity, carrier, complete, hashes, first)
            return
        draft_of = self._maker.draft
        for row in rows:
            draft = draft_of(row, identity, hashes[row.row - first] if hashes is not None else None)
            carried, problem = (), ""
            if row.data is not None:
                carried, problem = carrier.values(row, draft.consumed)
                if problem and draft.body is not None:
                    draft = _unstorable(draft, problem, has_hash=hashes is not None)
            body = draft.body
            if body is None:
                yield BadRow(
                    row=row.row,
                    custom_id=draft.custom_id,
                    source=row.source,
                    line=row.line,
                    message=draft.problem,
                    hash=f"{draft.hash:016x}",
                    carried=carried,
                )
                continue
            yield Request(
                row=row.row,
                custom_id=draft.custom_id,
                source=row.source,
                body=draft.written,
                hash=f"{draft.hash:016x}",
                model=body.get("model"),
                max_output_tokens=output_limit(body),
                carried=carried,
            )

    def _expanded(
        self,
        rows: Iterator[SourceRow],
        identity: Identity,
        carrier: Carrier,
        complete: bytearray,
        hashes: "array[int] | None",
        first: int,
    ) -> Iterator[Request | BadRow]:
        """`_made`, where a row has several."""
        maker, width = self._maker, self.expansion.width
        alike, has_hash = maker.alike, hashes is not None
        for row in rows:
            carried: tuple[Any, ...] | None = None
            problem = ""
            for at, asked in enumerate(maker.asked):
                place = (row.row - first) * width + at * alike
                wanted = [n for n in range(alike) if not complete[place + n]]
                if not wanted:
                    continue
                known = hashes[place] if hashes is not None else None
                draft = maker.draft(row, identity, known, asked)
                if carried is None:
                    carried = ()
                    if row.data is not None:
                        carried, problem = carrier.values(row, draft.consumed)
                if problem and draft.body is not None:
                    draft = _unstorable(draft, problem, has_hash=has_hash)
                body, key = draft.body, f"{draft.hash:016x}"
                model = None if body is None else body.get("model")
                limit = None if body is None else output_limit(body)
                for sample in wanted:
                    if body is None:
                        yield BadRow(
                            row=row.row,
                            custom_id=draft.custom_id,
                            source=row.source,
                            line=row.line,
                            message=draft.problem,
                            hash=key,
                            carried=carried,
                            sample=asked.sample + sample,
                            variant=asked.variant,
                        )
                        continue
                    yield Request(
                        row=row.row,
                        custom_id=draft.custom_id,
                        source=row.source,
                        body=draft.written,
                        hash=key,
                        model=model,
                        max_output_tokens=limit,
                        carried=carried,
                        sample=asked.sample + sample,
                        variant=asked.variant,
                    )

    def _identity(self, layout: Layout | None) -> Identity:
        """The rule that names rows; as pinned where there is a layout."""
        explicit = self._job.id
        if layout is None:
            first = Identity(explicit, None if explicit else FALLBACK)
            return replace(first, is_appended=self._is_appended)
        if explicit is not None and explicit != layout.id_column:
            was = f"column `{layout.id_column}`" if layout.id_column else "custom_id or number"
            raise InputError(
                f"--id (id in [input]) is `{explicit}`, but this run has named its rows by {was} "
                "since it began; leave id as it was, or start a new run directory with -o"
            )
        fallback = None if explicit else layout.id_column
        return Identity(
            explicit,
            fallback,
            pinned=True,
            bad_row_suffix=layout.bad_row_suffix,
            is_appended=self._is_appended,
        )

    def _check_columns(self, tally: ColumnTally, body_fields: set[str]) -> None:
        if not self._hashes:
            raise InputError(f"{self._source.spec}: no rows; the prompt set is empty")
        if not tally.columns:
            return  # not one row can be read: its problems say more
        job, known = self._job, tally.columns
        asked = {
            "id": [job.id] if job.id else (),
            "carry": job.carry or (),
            "send": job.send,
            "types": job.types,
        }
        for key, names in asked.items():
            for name in names:
                # A run that has begun knows columns that further rows may lack.
                is_carried = key in ("carry", "types") and self._has_begun and name in tally.fixed
                if (
                    name not in known
                    and not is_carried
                    and not (key == "send" and name in body_fields)
                ):
                    raise InputError(
                        f"{self._source.spec}: {_OPTIONS[key]} ({key} in [input]) names the column "
                        f"`{name}`, which no row has; {nearest(name, known, 'the columns')}"
                    )

    def _rows(self, numbers: set[int]) -> Iterator[SourceRow]:
        """The rows of these numbers, of Parquet with the columns alone that may name them."""
        return self._reader.rows(ColumnUse(self._names), self._all_but(numbers))

    def _examples(self, layout: Layout, is_bad: bytearray) -> tuple[Request | None, list[BadRow]]:
        """The first request, and the first bad rows."""
        good, width = is_bad.find(0), self.expansion.width
        wanted = {good} if good >= 0 else set()
        bad_rows = dict[int, None]()
        for number in (number for number, bad in enumerate(is_bad) if bad):
            bad_rows[number // width] = None
            wanted.add(number)
            if len(bad_rows) >= _SHOWN:
                break
        marks = bytearray(b"\1") * len(is_bad)
        for number in wanted:
            marks[number] = 0
        rows = list(self.requests(layout, marks))
        first = next((row for row in rows if isinstance(row, Request)), None)
        return first, _distinct(row for row in rows if isinstance(row, BadRow))

    def _all_but(self, numbers: Iterable[int]) -> bytearray:
        """Marks by which nothing but the rows of these numbers is read."""
        marks = bytearray(b"\1") * (len(self._hashes or ()) // self.expansion.width)
        for number in numbers:
            marks[number] = 0
        return marks


def _distinct(rows: Iterable[BadRow]) -> list[BadRow]:
    """One for each problem of a row: mostly all its requests have the same."""
    return list({(row.row, row.message): row for row in rows}.values())[:_SHOWN]


def _unstorable(draft: Draft, problem: str = "", *, has_hash: bool = False) -> Draft:
    """The draft of a row whose carried values cannot be stored.

    Its hash is not that of its request, so that the row counts as changed once it is repaired.
    """
    key = draft.hash if has_hash else draft.hash ^ _UNSTORABLE
    return replace(draft, body=None, written=b"", hash=key, problem=problem)
