"""`batchrun import`: a run made of answers that were produced elsewhere.

The run directory is written beside its place and renamed, so it is there whole or not at all.
"""

import os
import platform
import re
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from batchrun.dialects.responses import parse_response
from batchrun.errors import InputError, JobError
from batchrun.evals.batch_results import is_batch_result, key_of, read_batch_result
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import as_utf8, encode_json, shown
from batchrun.formats.printable import nearest
from batchrun.inputs.carried import Carrier
from batchrun.inputs.identity import repeated_hashes
from batchrun.inputs.parquet import ColumnUse
from batchrun.inputs.requests import HASH_RULE
from batchrun.inputs.rows import NO_COLUMNS, SourceRow, Unsendable, to_json_text
from batchrun.inputs.sources import SourceReader, find_source
from batchrun.inputs.survey.column_tally import ColumnTally
from batchrun.job.sections import InputJob
from batchrun.records import (
    Failure,
    JsonObject,
    Layout,
    Outcome,
    Request,
    Response,
    RowKey,
    RunRecord,
    Totals,
)
from batchrun.remote.run_link import scratch_of
from batchrun.remote.run_upload import publishing
from batchrun.remote.urls import is_remote, is_store, store_url
from batchrun.scoring.score import text_of
from batchrun.store.columns import SCHEMA_VERSION, name_columns
from batchrun.store.complete_rows import sum_totals
from batchrun.store.files import storing
from batchrun.store.parts import count_rows
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import read_snapshot
from batchrun.store.writing import STORE_SEGMENT_BYTES
from batchrun.version import VERSION

TARGET = "target"  # the carried column that is right
_SHOWN = 10
_VARIANT = re.compile(r"[A-Za-z0-9._:/@+-]{1,64}")
_MOST_SAMPLE = (1 << 31) - 1
_PART_ROWS, _PART_BYTES = 50_000, 64 << 20
_STORED = 1_000  # rows at a time, ...
_STORED_BYTES = 4 << 20  # ... or so many characters of answers


class Columns(Struct, frozen=True):
    """Which columns of the file say what; null: none does."""

    id: str | None = None
    text: str | None = None
    target: str | None = None
    sample: str | None = None
    variant: str | None = None
    model: str | None = None
    carry: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """The columns that are named, by their options."""
        own = {name: getattr(self, name) for name in self.__struct_fields__ if name != "carry"}
        return {name: column for name, column in own.items() if column is not None}


class Imported(Struct, frozen=True):
    """What came of it."""

    path: Path | str  # a URL, where it is in a store
    rows: int
    ok: int
    split: int  # rows whose ids were `ID|VARIANT|SAMPLE`


def import_answers(
    source: str,
    columns: Columns,
    path: Path | str,
    doing: Callable[[str], None] = lambda _what: None,
) -> Imported:
    """Makes the run directory `path`, or one at this URL in a store, of a file's rows.

    Without `columns.text` the file holds results of the Batch API, one a line. `doing` is told in
    words what is done. Raises `JobError`, `InputError`, `StoreError`; then there is no directory.
    """
    if is_store(str(path)):
        return _import_into_store(source, columns, store_url(str(path)).full, doing)
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise JobError(f"{path} exists already; give a new directory with -o")
    if as_utf8(str(path)) != str(path):
        raise JobError(
            "the run directory's name is not UTF-8, which Parquet needs; give another one with -o"
        )
    answers = _Answers(source, columns, doing)
    layout = answers.survey()
    with _temporary(path) as temporary:
        totals = _write(temporary, answers, layout, as_seen_from=path)
        with suppress(FileNotFoundError):
            path.rmdir()  # where it is empty
        temporary.rename(path)
    return Imported(path, totals.rows, totals.ok, answers.split)


def _import_into_store(
    source: str, columns: Columns, url: str, doing: Callable[[str], None]
) -> Imported:
    with _temporary(scratch_of(url)) as temporary, publishing(url, temporary) as publish:
        answers = _Answers(source, columns, doing)
        layout = answers.survey()
        totals = _write(temporary, answers, layout, url=url)
        doing(f"uploading {plural(totals.rows, 'row')}")
        with storing(url, "write"):
            publish()
    return Imported(str(store_url(url)), totals.rows, totals.ok, answers.split)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A folder beside the path, which is gone when the block has ended."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _input_job(source: str, columns: Columns) -> InputJob:
    carry = [*([columns.target] if columns.target else []), *columns.carry]
    return InputJob(source, carry=tuple(dict.fromkeys(carry)))


class _Answers:
    """The rows of a source as outcomes, read twice: `survey` comes first."""

    def __init__(self, spec: str, columns: Columns, doing: Callable[[str], None]) -> None:
        """Raises as `find_source`."""
        self.spec = spec
        self._doing = doing
        self.target = columns.target
        self._columns = columns
        self._job = _input_job(spec, columns)
        found = find_source(self._job)
        # Of a run, columns that are named here say which answer a row is, and not its joined name.
        plain = tuple(replace(file, is_keyed=False) for file in found.files)
        self._source = replace(found, files=plain)
        self._reader = SourceReader(self._source)
        self._used = frozenset(columns.named().values())
        self._repeated: set[int] = set()  # hashes of keys that several rows may have
        self.rows = 0
        self.split = 0

    def survey(self) -> Layout:
        """The carried columns; all rows were read. Raises `InputError`."""
        tally = ColumnTally(self._job, NO_COLUMNS, None, self._used)
        for file in self._source.files:
            if file.kind == "parquet":
                tally.add_file(file)
        keys, problems = array("q"), list[str]()
        used = None if self._columns.text is None else self._used
        use = ColumnUse(used, tally.expected(), check_only=True, sizes=tally.sizes)
        for row in self._reader.rows(use):
            if row.data is None:
                problems.append(f"{row}: {row.problem}")
            else:
                problem = tally.add(row, NO_COLUMNS)
                key, wrong = self._key(row)
                keys.append(hash(key))
                if problem or wrong:
                    problems.append(f"{row}: {problem or wrong}")
            if len(problems) > _SHOWN:
                break
            self.rows += 1
            if self.rows % _STORED == 0:
                self._doing(f"reading {self.spec}, {self.rows:,} rows so far")
        self._check_columns(tally)
        if problems:
            more = "\n  and more" if len(problems) > _SHOWN else ""
            lines = "".join(f"\n  {one}" for one in problems[:_SHOWN])
            raise InputError(f"{self.spec}: rows that cannot be imported:{lines}{more}")
        if not self.rows:
            raise InputError(f"{self.spec}: no rows; there is nothing to import")
        self._repeated = repeated_hashes(keys)
        self._refuse_repeated(use)
        return Layout(self._columns.id, tally.layout())

    def _check_columns(self, tally: ColumnTally) -> None:
        if not tally.columns:
            return
        named = [*self._columns.named().items(), *(("carry", one) for one in self._columns.carry)]
        for option, column in named:
            if column not in tally.columns:
                raise InputError(
                    f"{self.spec}: --{option} names the column `{column}`, which no row has; "
                    f"{nearest(column, tally.columns, 'the columns')}"
                )

    def _refuse_repeated(self, use: ColumnUse) -> None:
        if not self._repeated:
            return
        first: dict[RowKey, str] = {}
        for row in self._reader.rows(use):
            key, _ = self._key(row)
            if hash(key) not in self._repeated:
                continue
            if key in first:
                custom_id, sample, variant = key
                of = f", sample {sample}" + (f", variant {variant}" if variant else "")
                raise InputError(
                    f"{self.spec}: two rows have the id {shown(custom_id, 80)}{of}: {first[key]} "
                    f"and {row}. If a prompt has several answers, name the column that tells them "
                    "apart with --sample (numbers from 0) or --variant"
                )
            first[key] = str(row)

    def _key(self, row: SourceRow) -> tuple[RowKey, str]:
        """The row's key, and what is wrong with it."""
        data, columns = row.data or {}, self._columns
        is_batch = columns.text is None
        if is_batch and not is_batch_result(row.names):
            return ("", 0, None), (
                "not a result of the Batch API (custom_id, response, error); for other files name "
                "their columns with --id and --text"
            )
        id_column = "custom_id" if is_batch else columns.id
        wrong = ""
        name = data.get(id_column) if id_column is not None else str(row.row)
        if not isinstance(name, str | int) or isinstance(name, bool):
            wrong = f"`{id_column}` is {_in_words(name)}; an id is text or an integer"
        if is_batch:
            return key_of(_text(name) or "", data.get("id")), wrong
        sample = data.get(columns.sample, 0) if columns.sample else 0
        if isinstance(sample, str) and sample.isdecimal():
            sample = int(sample)
        if isinstance(sample, float) and sample.is_integer():
            sample = int(sample)
        if (
            not isinstance(sample, int)
            or isinstance(sample, bool)
            or not 0 <= sample <= _MOST_SAMPLE
        ):
            wrong = (
                wrong or f"`{columns.sample}` is {_in_words(sample)}; a sample is a number from 0"
            )
            sample = 0
        variant = data.get(columns.variant) if columns.variant else None
        if variant is not None and not (isinstance(variant, str) and _VARIANT.fullmatch(variant)):
            wrong = wrong or (
                f"`{columns.variant}` is {_in_words(variant)}; a variant is 1 to 64 of A-Z a-z 0-9 "
                ". _ : / @ + -"
            )
        return (_text(name) or "", sample, variant), wrong

    def outcomes(self, layout: Layout) -> Iterator[Outcome]:
        """Each row, as if it had been asked. Raises `InputError`."""
        carrier = Carrier(layout, self._job, begun=False)
        first: dict[int, int] = {}  # the number of the first row of each id: all its rows have it
        used = None if self._columns.text is None else self._used
        for row in self._reader.rows(ColumnUse(used, carrier.columns, carrier.left_out)):
            if row.row % _STORED == 0:
                self._doing(f"storing answers, {row.row:,} of {self.rows:,} rows")
            (custom_id, sample, variant), _ = self._key(row)
            if self._columns.text is None and row.data is not None:
                self.split += custom_id != _text(row.data["custom_id"])
            carried, problem = carrier.values(row, NO_COLUMNS)
            if problem:
                raise InputError(f"{row}: {problem}")
            request = Request(
                first.setdefault(hash(custom_id), row.row),
                custom_id,
                row.source,
                b"",
                "",
                None,
                None,
                carried,
                sample,
                variant,
            )
            yield Outcome(request, self._result(row, request), (), "", "")

    def _result(self, row: SourceRow, request: Request) -> Response | Failure:
        data, columns = row.data or {}, self._columns
        if columns.text is None:
            return read_batch_result(row, request)
        model = data.get(columns.model) if columns.model else None
        return answer_of_text(_text(data.get(columns.text)), _text(model), request)


def answer_of_text(text: str | None, model: str | None, request: Request) -> Response | Failure:
    """A completed answer of this text."""
    part: JsonObject = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    output = [] if text is None else [message]
    body = {"object": "response", "status": "completed", "model": model, "output": output}
    made = parse_response(encode_json(body), request)
    assert isinstance(made, Response)  # noqa: S101 - it is our own
    return made


def _text(value: object) -> str | None:
    """The text that stands for a value; null for what is none. Nothing in it is refused."""
    if isinstance(value, Unsendable):
        return value.text
    if isinstance(value, dict | list):
        return to_json_text(value, leniently=True)
    return None if value is None else text_of(value)


def _in_words(value: object) -> str:
    if value is None:
        return "null or missing"
    return value.what if isinstance(value, Unsendable) else f"{_text(value):.60}"


def _write(
    temporary: Path,
    answers: _Answers,
    layout: Layout,
    *,
    as_seen_from: Path | None = None,
    url: str | None = None,
) -> Totals:
    """The run directory that is to be at `as_seen_from`, or at `url` in a store."""
    run_dir = RunDir.open(temporary)
    try:
        now_at = time.time_ns() // 1000
        is_here = not is_remote(answers.spec)
        full = str(Path(answers.spec).resolve()) if is_here else answers.spec
        name = full
        if is_here and as_seen_from is not None:
            name = os.path.relpath(full, as_seen_from.resolve())
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            hash_rule=HASH_RULE,
            batchrun=VERSION,
            python=platform.python_version(),
            state="running",
            command=None,
            simulated=False,
            source=as_utf8(name),
            source_path=as_utf8(full),
            job={},
            layout=_as_stored(layout, answers.target),
            store_request=False,
            rows=answers.rows,
            started_at=now_at,
            updated_at=now_at,
            imported=True,
            store=url,
        )
        run_dir.save(record)
        part_bytes = _PART_BYTES if url is None else STORE_SEGMENT_BYTES
        run_dir.start(part_rows=_PART_ROWS, part_bytes=part_bytes)
        some: list[Outcome] = []
        size = 0
        for outcome in answers.outcomes(layout):
            some.append(outcome)
            result = outcome.result
            size += len(result.output) if isinstance(result, Response) else 0
            if len(some) >= _STORED or size >= _STORED_BYTES:
                _store(run_dir, some)
                some, size = [], 0
        _store(run_dir, some)
        run_dir.finish()
        totals = read_snapshot(temporary, sum_totals)
        run_dir.save(
            replace(
                record,
                state="finished",
                exit_code=0 if totals.ok == totals.rows else 4,
                totals=totals,
                parts=count_rows(temporary),
                updated_at=time.time_ns() // 1000,
            )
        )
    finally:
        run_dir.close()
    return totals


def _as_stored(layout: Layout, target: str | None) -> Layout:
    """The columns as the run calls them: nothing is read from the file again."""
    columns = [TARGET if one.column == target else one.column for one in layout.columns]
    pairs = zip(layout.columns, columns, name_columns(columns), strict=True)
    renamed = (replace(one, column=column, name=name) for one, column, name in pairs)
    return replace(layout, columns=tuple(renamed))


def _store(run_dir: RunDir, outcomes: Sequence[Outcome]) -> None:
    while outcomes:
        outcomes = outcomes[run_dir.store_some(outcomes) :]
