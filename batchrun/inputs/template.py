"""What the job says of every request, its templates filled from the columns of a row.

Templates are strict: a column that is missing, or null, is a problem of the row unless the template
says `default`. The same row gives the same text on every reading.
"""

import json
import math
import re
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from decimal import Decimal
from functools import partial
from typing import Any

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_context,
)
from jinja2.exceptions import UndefinedError
from jinja2.utils import missing

from batchrun.errors import JobError
from batchrun.formats.json_text import shown, valid_text
from batchrun.inputs.media import MediaReader
from batchrun.inputs.rows import MissingColumn, RowProblem, Unsendable, decode
from batchrun.inputs.sandbox import Sandbox
from batchrun.records import JsonObject

_TEXT_KEYS = ("input", "instructions")  # give text, unless they are nothing but a list
_RESULT = "_value"
_WHOLE = ("tool_choice", "conversation")  # objects that name one thing: no part of them is missing
# Filters such as `map` give an iterator, methods such as `items` a view.
_STRUCTURES = (dict, list, tuple, Iterator, KeysView, ValuesView, ItemsView)

Columns = Mapping[str, Any]
Fill = Callable[[Columns], Any]


class Defaults:
    """`[request]`, compiled: body fields for what a row leaves out.

    Raises `JobError` where a template cannot be read.
    """

    def __init__(
        self, request: JsonObject, *, merges: bool = True, beside: "Defaults | None" = None
    ) -> None:
        """`merges`: an object of the row takes what it leaves out from that of the job.

        `beside`: others that are filled from the same rows.
        """
        if beside is None:
            self._environment = Sandbox(
                to_text=_to_text,
                tojson=_to_json,
                fromjson=_from_json,
                undefined=_Strict,
                keep_trailing_newline=True,
            )
            self.media = MediaReader(self._environment.charge_letters)
            for make in (self.media.data_url, self.media.file_data):
                self._environment.filters[make.__name__] = _late(make)
        else:
            self._environment = beside._environment  # noqa: SLF001 - of its own class
            self.media = beside.media
        self._globals = self._environment.globals
        self._names: set[str] = set()  # that templates use
        self.of_row: set[str] = set()  # columns that they use as `row['name']` or `row.name`
        self.reads_all = False  # `row` used in another way: any column may be read
        self._fields = [(key, value, self._compiled(key, value)) for key, value in request.items()]
        # Of each object: its own fields, for rows that have some of them.
        self._parts = {
            key: [(name, inner, self._compiled(key, inner)) for name, inner in value.items()]
            for key, value in request.items()
            if merges and isinstance(value, dict) and key not in _WHOLE
        }
        self._globals_used = {n: self._globals[n] for n in self._names & {*self._globals}}
        self.reads = self._names & {"sample", "variant"}  # of what `asked` may hold
        # What is asked of the row this time: where the job says how often, before its columns.
        self.asked: Columns = {"sample": 0}
        self.is_expanded = False
        self.has_input = "input" in request
        self.has_prompt = isinstance(request.get("prompt"), dict)
        self.columns = frozenset(self._names | self.of_row)  # that templates name

    def fill(self, body: JsonObject, data: JsonObject) -> None:
        """Adds what `body` leaves out. Raises `RowProblem`."""
        self._add(body, self._fields, data, None)

    def override(self, body: JsonObject, data: JsonObject) -> None:
        """Puts these fields over those of `body`, objects merged. Raises `RowProblem`."""
        given: Columns | None = None
        for key, constant, make in self._fields:
            value = constant
            if make is not None:
                given = self._given(data) if given is None else given
                value = _run(make, given, key)
            body[key] = _merged(key, body.get(key), value)

    def _add(
        self,
        target: JsonObject,
        fields: Sequence[tuple[str, Any, Fill | None]],
        data: JsonObject,
        given: Columns | None,
        of: str | None = None,
    ) -> Columns | None:
        """Adds what `target` leaves out, the body or its object `of`; what templates are given."""
        for key, constant, make in fields:
            # A null model names none; any other null is what the row asks for.
            if key in target and (of is not None or key != "model" or target[key] is not None):
                if of is None and key in self._parts and _is_mergeable(key, target[key]):
                    merged = target[key] = {**target[key]}
                    given = self._add(merged, self._parts[key], data, given, key)
            elif make is None:
                target[key] = constant
            else:
                given = self._given(data) if given is None else given
                target[key] = _run(make, given, of or key)
        return given

    def _given(self, data: JsonObject) -> Columns:
        """What templates are given of a row, which has all its steps before it."""
        self._environment.start_row()
        given = data
        if None in data.values():
            given = {name: value for name, value in data.items() if value is not None}
        if self._globals_used:
            given = {**self._globals_used, **given}
        if "row" in self._names:  # for columns whose names are no identifiers
            given = {**given, "row": _with_columns(given.get("row"), given)}
        if self.reads:
            given = {**given, **self.asked} if self.is_expanded else {**self.asked, **given}
        return given

    def _compiled(self, key: str, value: Any) -> Fill | None:
        """What makes the value from a row's columns; None for a constant. Raises `JobError`."""
        try:
            return self._made(value, as_text=key in _TEXT_KEYS)
        except TemplateSyntaxError as error:
            line = f" (line {error.lineno} of it)" if "\n" in str(value) else ""
            said = str(error.message).rstrip(".")
            raise JobError(
                f"request.{key}: the template cannot be read: {said}{line}; fix it"
            ) from error
        except RecursionError as error:
            raise JobError(f"request.{key}: nested too deeply; make it flatter") from error

    def _made(self, value: Any, *, as_text: bool = False) -> Fill | None:
        """What makes the value; None where no template is in it."""
        if isinstance(value, str) and ("{{" in value or "{%" in value):
            return self._template(valid_text(value), as_text=as_text)
        if isinstance(value, dict):
            parts = [(key, inner, self._made(inner)) for key, inner in value.items()]
            if any(make for _, _, make in parts):
                return lambda given: {k: make(given) if make else v for k, v, make in parts}
        if isinstance(value, list):
            items = [(inner, self._made(inner)) for inner in value]
            if any(make for _, make in items):
                return lambda given: [make(given) if make else inner for inner, make in items]
        return None

    def _template(self, text: str, *, as_text: bool) -> Fill:
        self._note_names(self._environment.parse(text))
        whole = partial(_render, self._environment.from_string(text))
        body = self._environment.parse(text.strip()).body
        match body:
            case [nodes.Output(nodes=[single])] if not isinstance(single, nodes.TemplateData):
                value = self._expression(single)
            case _:
                return whole
        if not as_text:
            return value
        is_stripped = text == text.strip()

        def list_or_text(given: Columns) -> Any:
            made = value(given)
            if type(made) is list or (type(made) is str and is_stripped):
                return made
            return str(_to_text(made)) if is_stripped else whole(given)

        return list_or_text

    def _note_names(self, tree: nodes.Template) -> None:
        """Which columns the template uses, by their names or as parts of `row`."""
        names = [name.name for name in tree.find_all(nodes.Name)]
        self._names |= meta.find_undeclared_variables(tree) | {*names} & {*self._globals}
        uses = names.count("row")
        for part in (*tree.find_all(nodes.Getitem), *tree.find_all(nodes.Getattr)):
            match part:
                case (
                    nodes.Getattr(node=nodes.Name(name="row"), attr=str(name))
                    | nodes.Getitem(node=nodes.Name(name="row"), arg=nodes.Const(value=str(name)))
                ):
                    self.of_row.add(name)
                    uses -= 1
        self.reads_all = self.reads_all or uses > 0

    def _expression(self, expression: nodes.Expr) -> Fill:
        if isinstance(expression, nodes.Name) and expression.name not in self._globals:
            return partial(_column, expression.name)
        target = nodes.Name(_RESULT, "store", lineno=1)
        tree = nodes.Template([nodes.Assign(target, expression, lineno=1)], lineno=1)
        return partial(_evaluate, self._environment.from_string(tree))


def _late(make: Callable[[Any], str]) -> Callable[[Any, Any], str]:
    """A filter that Jinja2 does not call before there is a row, where the value is constant."""
    return pass_context(lambda _context, value: make(value))


def _is_mergeable(key: str, value: Any) -> bool:
    # Another stored prompt has variables of its own.
    return type(value) is dict and not (key == "prompt" and value.get("id") is not None)


def _merged(key: str, before: Any, value: Any) -> Any:
    """The value of a field over what was there: objects key by key, but for those of `_WHOLE`."""
    if type(before) is not dict or not _is_mergeable(key, value) or key in _WHOLE:
        return value
    return {**before, **{k: _merged("", before.get(k), inner) for k, inner in value.items()}}


def _run(make: Fill, given: Columns, key: str) -> Any:
    try:
        return make(given)
    except RowProblem:
        raise
    except RecursionError:
        raise RowProblem(f"template request.{key}: nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - a template calls methods of any value; what they raise is the row's
        raise RowProblem(f"template request.{key}: {_in_words(error)}") from None


def _in_words(error: Exception) -> str:
    """What a template raised, without names of Python's types."""
    said = str(error) or "it cannot be filled"
    said = _OBJECT.sub(lambda found: _KINDS.get(found[1], "this value"), said)
    said = _QUOTED.sub(lambda found: _KINDS.get(found[2], found[0]), said)
    if isinstance(error, TypeError):
        said = _NAME.sub(lambda found: _KINDS[found[0]], said)
    return said[:300]


_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "Decimal": "a number",
    "dict": "an object",
    "list": "a list",
    "tuple": "a list",
    "bool": "a truth value",
    "NoneType": "null",
    "_RowText": "text",
    "_RowList": "a list",
    "_RowObject": "an object",
    "_RowInteger": "a number",
    "_RowNumber": "a number",
    "Unsendable": "this value",
}
_OBJECT = re.compile(r"'?\b(?:[\w.]+\.)?(\w+) object\b'?(?: at 0x[0-9a-f]+)?")
_NAME = re.compile(r"\b(str|int|float|dict|tuple|bool|NoneType)\b")
_QUOTED = re.compile(r"(['\"])(?:[\w.]+\.)?(\w+)\1")


def _column(name: str, given: Columns) -> Any:
    value = given.get(name)
    if value is None:
        raise MissingColumn(name)
    return _plain(value) if name == "row" else value


def _render(template: Template, given: Columns) -> str:
    # Shared: the context takes the columns as they are, a copy would cost more than all the rest.
    context = template.new_context(given, shared=True)  # type: ignore[arg-type] # only read
    return template.environment.concat(template.root_render_func(context))


def _evaluate(template: Template, given: Columns) -> Any:
    context = template.new_context(given, shared=True)  # type: ignore[arg-type] # only read
    for _ in template.root_render_func(context):
        pass
    return _json_value(context.vars[_RESULT])


def _to_text(value: Any) -> Any:
    """The text for a value: structures as JSON. Raises `RowProblem` for null."""
    if value is None or isinstance(value, _STRUCTURES):
        return _to_json(_json_value(value))
    return value


def _to_json(value: Any, indent: int | None = None) -> str:
    # `str` raises for what cannot be sent, and for what is undefined.
    return json.dumps(
        value,
        ensure_ascii=False,
        indent=indent,
        default=lambda one: float(one) if isinstance(one, Decimal) else str(one),
        allow_nan=False,
    )


def _from_json(value: Any) -> Any:
    """What JSON text means, for the filter `fromjson`; other values as they are."""
    if not isinstance(value, str):
        return str(value) if isinstance(value, Undefined) else value
    try:
        return decode(str(value))
    except RowProblem as problem:
        raise RowProblem(f"`fromjson` is given {shown(str(value))}: {problem.message}") from None


def _json_value(value: Any) -> Any:
    """The value as JSON knows it. Raises `RowProblem` where it does not."""
    match value:
        case None:
            raise RowProblem("a template gives null; say what to put there with `default`")
        case int() | float() if type(value) not in (bool, int, float):
            return _json_value(_plain(value))
        case bool() | int() | Decimal() | Unsendable():
            return value
        case str():
            return str.__str__(value)
        case float() if math.isfinite(value):
            return value
        case dict():
            return {str(k): None if v is None else _json_value(v) for k, v in value.items()}
        case Undefined():
            return str(value)
        case Iterable() if not isinstance(value, bytes):
            return [None if inner is None else _json_value(inner) for inner in value]
    what = "infinity or NaN" if isinstance(value, float) else "a value"
    raise RowProblem(f"a template gives {what}, which JSON cannot express")


class _RowColumn:
    """The value of a column named `row`; all the same `row['name']` is a column of the row."""

    _columns: Columns

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) and key in self._columns:
            return self._columns[key]
        return super().__getitem__(key)  # type: ignore[misc] # of text, a list or an object


class _RowText(_RowColumn, str):  # noqa: SLOT000 - it holds its row
    pass


class _RowList(_RowColumn, list[Any]):
    pass


class _RowObject(_RowColumn, dict[str, Any]):
    pass


class _RowInteger(_RowColumn, int):
    pass


class _RowNumber(_RowColumn, float):
    pass


_ROW_TYPES: dict[type, Any] = {
    str: _RowText,
    list: _RowList,
    dict: _RowObject,
    int: _RowInteger,
    float: _RowNumber,
}


def _with_columns(value: Any, columns: Columns) -> Any:
    """What `row` is in a template, where a column of that name has this value, or none."""
    if value is None:
        return columns
    kind = _ROW_TYPES.get(type(value))
    if kind is None:
        return value
    made = kind(value)
    made._columns = columns  # noqa: SLF001 - no template may read what begins so
    return made


def _plain(value: Any) -> Any:
    """The column's own value again."""
    for plain, kind in _ROW_TYPES.items():
        if type(value) is kind:
            return plain(value)
    return value


class _Strict(StrictUndefined):
    """Undefined that remembers which column it stands for."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: Any = None,
        exc: Any = UndefinedError,
    ) -> None:
        if obj is missing and hint is None and name is not None:
            exc = partial(MissingColumn, name)
        super().__init__(hint, obj, name, exc)
