"""What the job says of every request, with templates filled from a row's columns, in a sandbox.

Jinja2's own sandbox keeps attributes, mutation and `range` in bounds; loops within loops, powers
and padding are bounded here.

Templates run in a sandbox and are strict: a column that is missing, or null, is a problem of the
row unless the template says `default`. The same row gives the same text on every reading.
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
    Sized,
    ValuesView,
)
from decimal import Decimal
from functools import partial, update_wrapper
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from jinja2.visitor import NodeTransformer

from batchrun.errors import JobError
from batchrun.formats.json_text import valid_text
from batchrun.inputs.rows import NoColumn, RowProblem, Unsendable
from batchrun.records import JsonObject

MOST_STEPS = 1_000_000  # turns of loops, and calls, for one row
MOST_LETTERS = 256 * 1024 * 1024  # of one text, or items of a list
_MOST_BITS = 100_000  # of one number
_MOST_WIDTH = 1_000_000  # that a text is padded to
_WIDE = re.compile(r"[0-9]{7,}")
_WIDTH_BESIDE = re.compile(r"\*|:[^}]*\{")
_GROWING = ("batch", "center", "format", "indent", "join", "replace", "slice")  # filters
_TOO_LONG = f"a text or list of more than {MOST_LETTERS:,} letters or items"
_STEPS_OF_CALL = 20  # a macro takes longer than a turn


class Sandbox(ImmutableSandboxedEnvironment):
    """Raises `SecurityError` where a template goes too far."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps = 0
        self.concat = joined  # type: ignore[method-assign] # any pieces, as `"".join`
        for name in _GROWING:
            self.filters[name] = _bounded(name, self.filters[name])
        self.filters["_counted"], self.filters["_joined"] = self._counted, _joined_texts

    def start_row(self) -> None:
        """Another row: it has all steps before it."""
        self._steps = 0

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - Jinja2's own: a template may use any other name
        __self._charge(_STEPS_OF_CALL)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        if isinstance(text := getattr(method, "__self__", None), str):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            _check_call(method.__name__, text, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,  # noqa: FBT002 - Jinja2's own
    ) -> str:
        return super()._generate(_Bounded().visit(source), name, filename, defer_init)

    def _charge(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise SecurityError(f"more than {MOST_STEPS:,} turns of loops for one row")

    def _counted(self, value: Any) -> Any:
        """What a loop goes over, its turns charged."""
        if isinstance(value, Sized):
            self._charge(len(value))
            return value
        return self._each_counted(value)

    def _each_counted(self, value: Iterable[Any]) -> Iterator[Any]:
        for one in value:
            self._charge(1)
            yield one


class _Bounded(NodeTransformer):
    """Loops are counted, and what `~` joins has a size."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja2's own names
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_joined")


def joined(pieces: Iterable[str]) -> str:
    """The pieces as one text."""
    kept, letters = [], 0
    for piece in pieces:
        letters += len(piece)
        if letters > MOST_LETTERS:
            raise SecurityError(_TOO_LONG)
        kept.append(piece)
    return "".join(kept)


def _joined_texts(values: list[Any]) -> str:
    if sum(len(value) for value in values if isinstance(value, str)) > MOST_LETTERS:
        raise SecurityError(_TOO_LONG)
    return str_join(values)


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _bounded(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that makes texts longer, with its arguments looked at."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        # A generator can be looked at only once: it becomes a list.
        args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        values = (*args, *kwargs.values())
        texts = [value for value in values if isinstance(value, str)]
        _check_call(name, texts[0] if texts else "", values)
        return inner(*args, **kwargs)

    return update_wrapper(bounded, inner)  # with its marks: Jinja2 hands some filters more


def _check_call(name: str, text: str, values: Sequence[Any]) -> None:
    """What a method of `text`, or a filter, may be called with."""
    texts = [value for value in values if isinstance(value, str)]
    size = len(text)
    if name == "format":
        if _WIDE.search(text):
            raise SecurityError("a format with a width of millions")
        places = text.count("%") + text.count("{")
        size += places * max(map(len, texts), default=0)
        if not _WIDTH_BESIDE.search(text):
            values = ()  # numbers are what it writes
    elif name == "replace":
        old, new = texts[-2:] if len(texts) > 1 else ("", "")
        size += text.count(old) * len(new)
    elif name == "join":
        lists = [value for value in values if isinstance(value, list | tuple)]
        pieces = [piece for value in lists for piece in value if isinstance(piece, str)]
        size = sum(map(len, pieces)) + sum(map(len, lists)) * max(map(len, (text, *texts)))
    if size > MOST_LETTERS:
        raise SecurityError(_TOO_LONG)
    for value in values:
        if isinstance(value, int) and abs(value) > _MOST_WIDTH:
            raise SecurityError(f"{name} with a width of millions")


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = 0
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        elif operator == "**" and abs(left) > 1:
            bits = left.bit_length() * right
        if bits > _MOST_BITS:
            raise SecurityError("a number of many pages")
    elif operator in ("+", "*"):
        if operator == "+":
            size = _length(left) + _length(right)
        else:
            size = _length(left) * _times(right) + _length(right) * _times(left)
        if size > MOST_LETTERS:
            raise SecurityError(_TOO_LONG)
    elif operator == "%" and isinstance(left, str):
        values = tuple(right.values()) if isinstance(right, Mapping) else right
        _check_call("format", left, values if isinstance(values, tuple) else (values,))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _times(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


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
            if "{{" not in value and "{%" not in value:
                return None
            return self._template(valid_text(value), as_text=as_text)
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
