"""The rows of a run as scorers want them: the text that is scored, its target, calls or choices."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from batchrun.errors import InputError, JobError
from batchrun.evals.answer_sources import AnswerSource
from batchrun.evals.rules import is_structured, needs_target, takes_target, with_target
from batchrun.formats.amounts import plural
from batchrun.formats.arrow import json_values
from batchrun.formats.json_text import shown, value_of
from batchrun.formats.printable import listed, nearest
from batchrun.inputs.parquet import ColumnUse
from batchrun.inputs.rows import RowProblem
from batchrun.inputs.sources import SourceReader, find_source
from batchrun.inputs.template import Defaults
from batchrun.job.scorer_sections import ChoiceJob, PythonJob, ScorerJob, TargetsJob, ToolCallsJob
from batchrun.job.sections import InputJob
from batchrun.records import JsonObject
from batchrun.scoring.score import text_of
from batchrun.store.columns import CALLS, KEY, own_columns, put_beside

# Statuses of answers, which are the model's whatever they lack; all others have no score.
ANSWERED = ("completed", "incomplete")
_ALWAYS = ("row", *KEY, "status", "error_kind", "response_id")
_SINGLE = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_DEFAULT_TARGETS = ("target", "answer")


class Answer(NamedTuple):
    """What is scored of one row."""

    text: str
    target: Any
    extra: Any  # calls, choices, or the whole row


class OutputCall(msgspec.Struct):
    """What is read of an output item."""

    type: Any = None
    name: Any = None
    arguments: Any = None


_decode_items = msgspec.json.Decoder(list[OutputCall]).decode


class ScoringInputs:
    """Makes answers of batches of `responses`, as one scorer asks.

    Raises `JobError` where the run has no such column, or a template or a file of targets cannot be
    read.
    """

    def __init__(self, job: ScorerJob, source: AnswerSource) -> None:
        self._job, self._name = with_target(job), source.name
        self._schema, self._json = source.schema, source.of_json
        self._where = f"scorer {job.name}"
        self._text = self._maker("input", self._job.input)
        self._targets: Mapping[str, Any] | None = None
        self._used: set[str] = set()  # names of rows whose target the file has
        self._target = self._target_maker()
        self._extra = self._extra_maker()
        self.is_whole = isinstance(job, PythonJob)
        makers = [one for one in (self._text, self._target, self._extra) if one is not None]
        names = {name for one in makers for name in one.columns}
        if self.is_whole:
            names.update(self._schema.names)
        self.columns = tuple(name for name in self._schema.names if name in names | set(_ALWAYS))

    @property
    def schema(self) -> pa.Schema:
        """Of the batches that `answers` is given."""
        return pa.schema([self._schema.field(name) for name in self.columns])

    def answers(self, batch: pa.RecordBatch) -> list[Answer | None]:
        """One for each row; null for rows without an answer. Raises `JobError`."""
        scored = [status in ANSWERED for status in batch["status"].to_pylist()]
        texts = self._text.values(batch, scored)
        extras: Sequence[Any] = [None] * batch.num_rows
        if self.is_whole:
            extras = whole_rows(batch)
        elif self._extra is not None:
            extras = self._extra.values(batch, scored)
        targets: Sequence[Any] = [None] * batch.num_rows
        if self._target is not None:
            targets = self._target.values(batch, scored)
        if self._targets is not None:
            names = batch["custom_id"].to_pylist()
            targets = [
                self._looked_up(name, own) if is_scored else None
                for name, own, is_scored in zip(names, targets, scored, strict=True)
            ]
        return [
            Answer(text, target, extra) if is_scored else None
            for is_scored, text, target, extra in zip(scored, texts, targets, extras, strict=True)
        ]

    @property
    def corrections(self) -> str:
        """What a file of targets that holds some alone has changed; empty for any other."""
        if self._targets is None or self._target is None or self._job.targets is None:
            return ""
        said = f"{plural(len(self._used), 'target')} from {self._job.targets.file}"
        if unused := [name for name in self._targets if name not in self._used]:
            said += f" ({plural(len(unused), 'id has', 'ids have')} no answer: {listed(unused)})"
        return f"{said}, all others from target = {shown(self._job.target)}"

    def _looked_up(self, custom_id: str, own: Any) -> Any:
        """The target of the file, or the row's own."""
        assert self._targets is not None  # noqa: S101 - the caller has looked
        if custom_id in self._targets:
            self._used.add(custom_id)
            return self._targets[custom_id]
        if self._target is not None or not needs_target(self._job):
            return own
        file = self._job.targets.file if self._job.targets else ""
        raise JobError(
            f"{self._where}: {file} has no target for the row {shown(custom_id, 80)}; add it, "
            'remove `targets`, or name the column with all other targets: target = "COLUMN"'
        )

    def _target_maker(self) -> "_Maker | None":
        job = self._job
        if job.target is False or not takes_target(job):
            return None
        if job.targets is not None:
            self._targets = read_targets(job.targets, self._where)
            if not isinstance(job.target, str):
                return None
        if isinstance(job.target, str):
            return self._maker("target", job.target)
        found = next((name for name in _DEFAULT_TARGETS if name in self._schema.names), None)
        if found is not None:
            return self._maker("target", found)
        if not needs_target(job):
            return None
        raise JobError(
            f"{self._where}: {self._name} carries neither `target` nor `answer`; name the "
            f'column with the right answers: target = "COLUMN" ({self._carried_in_words()}), or a '
            'file: targets = { file = "labels.jsonl", id = "id", column = "answer" }'
        )

    def _carried_in_words(self) -> str:
        own = own_columns()
        carried = [name for name in self._schema.names if name not in own]
        return f"it carries {', '.join(carried[:30])}" if carried else "it carries no column"

    def _extra_maker(self) -> "_Maker | None":
        if isinstance(self._job, ToolCallsJob):
            return _Maker(("output",), lambda batch, scored: _calls(batch["output"], scored))
        if isinstance(self._job, ChoiceJob) and self._job.column is not None:
            return self._column("column", self._job.column, as_value=True)
        return None

    def _maker(self, key: str, text: str) -> "_Maker":
        """Of a column, or of a template."""
        single = _SINGLE.fullmatch(text.strip())
        is_template = "{{" in text or "{%" in text
        if not is_template or (single and single[1] in self._schema.names):
            name = single[1] if single and is_template else text
            return self._column(key, name, as_value=key == "target")
        return _Template(self._where, key, text, self._schema, self._json).maker()

    def _column(self, key: str, name: str, *, as_value: bool) -> "_Maker":
        if name not in self._schema.names:
            raise _no_column(self._where, key, name, self._schema.names)
        kind, is_json = self._schema.field(name).type, name in self._json
        if not as_value:
            return _Maker(
                (name,), lambda batch, _: [_as_text(one) for one in batch[name].to_pylist()]
            )
        if pa.types.is_string(kind) and not is_json:
            return _Maker((name,), lambda batch, _: batch[name].to_pylist())
        drops_nulls = is_structured(self._job)

        def values(batch: pa.RecordBatch, _: Sequence[bool]) -> list[Any]:
            found = json_values(pa.chunked_array([batch[name]]))
            if is_json:
                return [value_of(one) for one in found]
            return [_without_nulls(one) for one in found] if drops_nulls else found

        return _Maker((name,), values)


class _Maker(NamedTuple):
    """A value of each row of a batch, of these columns; rows that are not scored may lack it."""

    columns: Collection[str]
    values: Callable[[pa.RecordBatch, Sequence[bool]], list[Any]]


def _no_column(where: str, key: str, name: str, known: Sequence[str]) -> JobError:
    return JobError(
        f"{where}: {key} names the column `{name}`, which the run does not have; "
        f"{nearest(name, known, 'columns')}"
    )


class _Template:
    """A template over the row's columns; JSON text that is carried is what it means."""

    def __init__(
        self, where: str, key: str, text: str, schema: pa.Schema, of_json: Collection[str]
    ) -> None:
        self._where, self._key, self._json = where, key, of_json
        # As `input` of a request: text, whatever it is made of.
        self._field = "input" if key == "input" else "value"
        try:
            self._defaults = Defaults({self._field: text})
        except JobError as error:
            said = str(error).removeprefix(f"request.{self._field}: ")
            raise JobError(f"{where}: {key}: {said}") from None
        names = self._defaults.columns - {"row"}
        self._columns = tuple(schema.names) if self._defaults.reads_all else tuple(sorted(names))
        for name in self._columns:
            if name not in schema.names:
                raise _no_column(where, key, name, schema.names)
        if not self._columns and key == "input":
            raise JobError(f"{where}: {key}: the template names no column; write {{{{ COLUMN }}}}")

    def maker(self) -> _Maker:
        return _Maker(self._columns, self._values)

    def _values(self, batch: pa.RecordBatch, scored: Sequence[bool]) -> list[Any]:
        columns = {name: self._plain(name, batch[name]) for name in self._columns}
        names = batch["custom_id"].to_pylist()
        made = []
        for at, name in enumerate(names):
            value = None
            if scored[at]:
                value = self._filled({one: column[at] for one, column in columns.items()}, name)
            made.append(value)
        return made

    def _plain(self, name: str, column: pa.Array) -> list[Any]:
        values = json_values(pa.chunked_array([column]))
        if name in self._json:
            values = [value_of(one) for one in values]
        # What an answer lacks is empty: it is the model's. A target must be there.
        return ["" if one is None else one for one in values] if self._key == "input" else values

    def _filled(self, columns: JsonObject, custom_id: str) -> Any:
        made: JsonObject = {}
        try:
            self._defaults.fill(made, columns)
        except RowProblem as problem:
            said = problem.message.replace(f"request.{self._field}", self._key)
            raise JobError(f"{self._where}: row {shown(custom_id, 80)}: {said}") from None
        value = made[self._field]
        return value if self._field == "value" else _as_text(value)


def _as_text(value: Any) -> str:
    if type(value) is str:
        return value
    return "" if value is None else text_of(value)


def _without_nulls(value: Any) -> Any:
    """Without what structs of Parquet have where a field was absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _calls(outputs: pa.Array, scored: Sequence[bool]) -> list[list[tuple[Any, Any]]]:
    """The calls of functions of each row, as the model wrote them: names and arguments."""
    return [
        calls_of(output) if is_scored else []
        for output, is_scored in zip(outputs.to_pylist(), scored, strict=True)
    ]


def calls_of(output: str | None) -> list[tuple[Any, Any]]:
    """Of output items as JSON."""
    try:
        items = _decode_items(output or "[]")
    except (ValueError, RecursionError):  # repaired, as the answer was when it was read
        found = value_of(output)
        items = [
            OutputCall(*(one.get(name) for name in OutputCall.__struct_fields__))
            for one in (found if isinstance(found, list) else [])
            if isinstance(one, dict)
        ]
    return [(item.name, _written(item.arguments)) for item in items if item.type == "function_call"]


def _written(arguments: Any) -> str | None:
    return arguments if arguments is None or isinstance(arguments, str) else json.dumps(arguments)


def whole_rows(batch: pa.RecordBatch) -> list[JsonObject]:
    """Each row with all columns, times as text, and its calls as `tool_calls`."""
    columns = [json_values(pa.chunked_array([column])) for column in batch.columns]
    names = batch.schema.names
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    for row in rows:
        put_beside(row, CALLS, tool_calls_of(row.get("output")))
    return rows


def tool_calls_of(output: str | None) -> list[JsonObject]:
    """The calls among output items as JSON, with what the table `tool_calls` has of them."""
    items = value_of(output)
    return [
        {
            "position": position,
            "type": item["type"],
            "call_id": item.get("call_id"),
            "name": item.get("name"),
            "arguments": _written(item.get("arguments", item.get("input"))),
            "status": item.get("status"),
        }
        for position, item in enumerate(items if isinstance(items, list) else ())
        if isinstance(item, dict) and str(item.get("type")).endswith("_call")
    ]


def read_targets(job: TargetsJob, where: str) -> dict[str, Any]:
    """Targets by `custom_id`. Raises `JobError`, `InputError`."""
    targets: dict[str, Any] = {}
    reader = SourceReader(find_source(InputJob(job.file)))
    for row in reader.rows(ColumnUse(frozenset({job.id, job.column}))):
        if row.data is None:
            raise InputError(f"{where}: targets: {row}: {row.problem}")
        for key in (job.id, job.column):
            if key not in row.data and key not in row.columns:
                there = nearest(key, row.names, "its columns")
                raise JobError(f"{where}: targets: {row}: there is no column `{key}`; {there}")
        name = row.data.get(job.id)
        if name is None:
            raise JobError(f"{where}: targets: {row}: `{job.id}` is null")
        name, value = text_of(name), row.data.get(job.column)
        if name in targets and targets[name] != value:
            raise JobError(
                f"{where}: targets: {row}: there is already another target for {shown(name, 80)}"
            )
        targets[name] = value
    return targets
