"""What the job says of every request, with templates filled from a row's columns.

Templates run in a sandbox and are strict: a column that is missing, or null, is a problem of the
row unless the template says `default`. The same row gives the same text on every reading.
"""

import json
import math
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from decimal import Decimal
from functools import partial
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import UndefinedError
from jinja2.utils import missing

from batchrun.errors import JobError
from batchrun.inputs.json_text import Unsendable, clean
from batchrun.inputs.rows import NoColumn, RowProblem
from batchrun.inputs.sandbox import Sandbox, joined
from batchrun.records import JsonObject

ROW = "row"  # the whole row, for columns whose names are no identifiers
_TEXT_KEYS = ("input", "instructions")  # give text, unless they are nothing but a list
_RESULT = "_value"
# Filters such as `map` leave an iterator, methods such as `items` a view.
_STRUCTURES = (dict, list, tuple, Iterator, KeysView, ValuesView, ItemsView)

Columns = Mapping[str, Any]
Fill = Callable[[Columns], Any]


class Defaults:
    """`[request]`, compiled: body fields for what a row leaves out.

    Raises `JobError` where a template is none.
    """

    def __init__(self, request: JsonObject) -> None:
        self._columns: set[str] = set()
        self._of_row: set[str] = set()  # as `row['name']`
        self.reads_all = False  # `row` used in another way: any column may be read
        self._environment = _environment()
        self._bare = _environment()  # tells all names that a template uses, `range` too
        self._bare.globals.clear()
        self._fields = [(key, *self._compiled(key, value)) for key, value in request.items()]
        known = self._environment.globals
        self._globals_used = {name: known[name] for name in self._columns if name in known}
        self.has_input = "input" in request
        self.has_prompt = isinstance(request.get("prompt"), dict)
        self.uses_row = ROW in self._columns
        self.columns = frozenset(self._columns | self._of_row)  # that templates name

    def fill(self, body: JsonObject, data: JsonObject) -> None:
        """Adds what `body` leaves out. Raises `RowProblem`."""
        given: Columns | None = None
        for key, constant, make in self._fields:
            # A null model names none; any other null is the row's own word.
            if key in body and (key != "model" or body[key] is not None):
                continue
            if make is None:
                body[key] = constant
                continue
            if given is None:
                given = self._given(data)
                self._environment.start_row()
            body[key] = _run(make, given, key)

    def _given(self, data: JsonObject) -> Columns:
        given = data
        if None in data.values():
            given = {name: value for name, value in data.items() if value is not None}
        if self._globals_used:
            given = {**self._globals_used, **given}
        if self.uses_row and ROW not in data:
            given = {**given, ROW: given}
        return given

    def _note_row(self, tree: nodes.Template) -> None:
        """Which columns are read as `row['name']` or `row.name`, if that is all `row` is for."""
        uses = sum(name.name == ROW for name in tree.find_all(nodes.Name))
        parts: list[nodes.Getitem | nodes.Getattr] = list(tree.find_all(nodes.Getitem))
        for part in (*parts, *tree.find_all(nodes.Getattr)):
            if not (isinstance(part.node, nodes.Name) and part.node.name == ROW):
                continue
            name = part.attr if isinstance(part, nodes.Getattr) else None
            if isinstance(part, nodes.Getitem) and isinstance(part.arg, nodes.Const):
                name = part.arg.value
            if isinstance(name, str):
                self._of_row.add(name)
                uses -= 1
        self.reads_all = self.reads_all or uses > 0

    def _compiled(self, key: str, value: Any) -> tuple[Any, Fill | None]:
        """The constant, or what makes the value from a row's columns."""
        try:
            make = self._made(value, as_text=key in _TEXT_KEYS)
        except TemplateSyntaxError as error:
            line = f" (line {error.lineno} of it)" if "\n" in str(value) else ""
            said = str(error.message).rstrip(".")
            raise JobError(
                f"request.{key}: the template cannot be read: {said}{line}; mend it"
            ) from error
        except RecursionError as error:
            raise JobError(f"request.{key}: nested too deeply; make it flatter") from error
        return (value, None) if make is None else (None, make)

    def _made(self, value: Any, *, as_text: bool) -> Fill | None:
        if isinstance(value, str):
            return self._template(clean(value), as_text=as_text) if _is_template(value) else None
        if isinstance(value, dict):
            makers = {key: self._made(inner, as_text=False) for key, inner in value.items()}
            if not any(makers.values()):
                return None
            made_of = [(key, value[key], make) for key, make in makers.items()]
            return lambda given: {k: make(given) if make else v for k, v, make in made_of}
        if isinstance(value, list):
            each = [(inner, self._made(inner, as_text=False)) for inner in value]
            if not any(make for _, make in each):
                return None
            return lambda given: [make(given) if make else inner for inner, make in each]
        return None

    def _template(self, text: str, *, as_text: bool) -> Fill:
        tree = self._bare.parse(text)
        self._columns |= meta.find_undeclared_variables(tree)
        self._note_row(tree)
        single = _single_expression(self._environment.parse(text.strip()))
        if single is None:
            return partial(_render, self._environment.from_string(text))
        value = self._expression(single)
        if not as_text:
            return value
        if text == text.strip():
            return lambda given: _list_or_text(value(given), None)
        whole = partial(_render, self._environment.from_string(text))
        return lambda given: _list_or_text(value(given), lambda: whole(given))

    def _expression(self, expression: nodes.Expr) -> Fill:
        if isinstance(expression, nodes.Name) and expression.name not in self._environment.globals:
            return partial(_column, expression.name)
        target = nodes.Name(_RESULT, "store", lineno=1)
        tree = nodes.Template([nodes.Assign(target, expression, lineno=1)], lineno=1)
        return partial(_evaluate, self._environment.from_string(tree))


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def _single_expression(tree: nodes.Template) -> nodes.Expr | None:
    match tree.body:
        case [nodes.Output(nodes=[expression])] if not isinstance(expression, nodes.TemplateData):
            return expression
    return None


def _run(make: Fill, given: Columns, key: str) -> Any:
    try:
        return make(given)
    except RowProblem:
        raise
    except RecursionError:
        raise RowProblem(f"template request.{key}: nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - a template calls methods of any value; what they raise is the row's
        reason = str(error) or "no reason given"
        raise RowProblem(f"template request.{key}: {type(error).__name__}: {reason:.300}") from None


def _column(name: str, given: Columns) -> Any:
    value = given.get(name)
    if value is None:
        raise NoColumn(name)
    return value


def _render(template: Template, given: Columns) -> str:
    # Shared: the context takes the columns as they are, a copy would cost more than all the rest.
    context = template.new_context(given, shared=True)  # type: ignore[arg-type] # only read
    return joined(template.root_render_func(context))


def _evaluate(template: Template, given: Columns) -> Any:
    context = template.new_context(given, shared=True)  # type: ignore[arg-type] # only read
    for _ in template.root_render_func(context):
        pass
    return _json_value(context.vars[_RESULT])


def _list_or_text(value: Any, otherwise: Callable[[], str] | None) -> Any:
    if type(value) is list:
        return value
    return str(_finalize(value)) if otherwise is None else otherwise()


def _finalize(value: Any) -> Any:
    """What stands in text for a value: structures as JSON, nothing as a problem."""
    if type(value) is str:
        return value
    if value is None:
        raise RowProblem("a template gives null; say what to put there with `default`")
    if isinstance(value, _STRUCTURES):
        return _to_json(_json_value(value))
    return value


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_number, allow_nan=False)


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return str(value)  # raises for what cannot be sent, and for what is undefined


def _json_value(value: Any) -> Any:
    """The value as JSON knows it. Raises `RowProblem` where it does not."""
    match value:
        case None:
            raise RowProblem("a template gives null; say what to put there with `default`")
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
    raise RowProblem(f"a template gives {value!r:.60}, which JSON has no word for")


class _Strict(StrictUndefined):
    """Undefined that remembers which column it stands for."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[Exception] = UndefinedError,
    ) -> None:
        raised: Any = exc
        if obj is missing and hint is None and name is not None:

            def raised(_message: str, column: str = name) -> RowProblem:
                return NoColumn(column)

        super().__init__(hint, obj, name, raised)


def _environment() -> Sandbox:
    environment = Sandbox(
        undefined=_Strict, finalize=_finalize, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["tojson"] = _to_json
    # Chance would make another request of the row at each reading.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment
