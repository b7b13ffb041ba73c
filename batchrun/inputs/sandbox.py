"""Jinja2's sandbox, in which a template's time and memory have a bound too.

Jinja2's own guards attributes, changes to values, and `range`. Here a row has so many steps: a turn
of a loop is one, a call is several, and what a filter, a test, a call or an operator works on and
makes of it comes to steps by its size.
"""

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
from functools import update_wrapper
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000  # for one row
_STEPS_OF_CALL = 20  # a macro takes longer than a turn of a loop
_LETTERS_OF_STEP = 512  # that texts of one row have together, made or looked through: some 500 MB
_LETTERS_OF_ITEM = 128  # what an item of a list counts as, besides the letters in it

# Filters and methods that repeat what they are given, at most as often as the product of two sizes.
_REPEATING = (
    *("batch", "center", "expandtabs", "indent", "join", "ljust", "rjust", "round", "slice"),
    *("to_bytes", "tojson", "translate", "wordwrap", "zfill"),
)
_NUMBER = re.compile(r"[0-9]{1,18}")
_WIDTH_AMONG_VALUES = re.compile(r"\*|:[^}]*\{")


class Sandbox(ImmutableSandboxedEnvironment):
    """With filters besides Jinja2's. Raises `SecurityError` where a template goes too far."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(**options)
        self.filters.update(filters)
        # Chance would make another request of the row at each reading.
        del self.filters["random"], self.globals["lipsum"]
        self._steps = 0
        self.concat = self._concat  # type: ignore[method-assign] # takes any pieces, as "".join
        tables: list[dict[str, Any]] = [self.filters, self.tests]
        for functions in tables:
            for name, function in functions.items():
                functions[name] = self._measured(name, function)
        self.filters["_counted"] = self._counted
        self.filters["_measured"] = self._measured("", lambda value: value)

    def start_row(self) -> None:
        """Another row: it has all steps before it."""
        self._steps = 0

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._measure("format", (left, *right) if isinstance(right, tuple) else (left, right))
        elif not (isinstance(left, int) and isinstance(right, int)):
            sizes = [one if isinstance(one, int) else _size(one) for one in (left, right)]
            self._charge(sizes[0] * sizes[1] if operator == "*" else sum(sizes))
        elif operator in ("*", "**") and abs(left) > 1:
            bits = left.bit_length()
            bits = bits * right if operator == "**" else bits + right.bit_length()
            self._charge(bits * bits // 16)  # as long as multiplying takes
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - Jinja2's own: a template may use any other name
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        name = method.__name__ if isinstance(owner, str | bytes | int | list) else ""
        if isinstance(__obj, LoopContext):  # a recursive loop
            args = tuple(__self._counted(__context, one) for one in args)
        args = _lists_to_join(name, args)
        __self._measure(name, (owner if name else None, *args, *kwargs.values()), _STEPS_OF_CALL)
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Measuring().visit(source), *args, **kwargs)

    def _charge(self, letters: int, steps: int = 0) -> None:
        self._steps += steps + max(letters, 0) // _LETTERS_OF_STEP
        if self._steps > MAX_STEPS:
            raise SecurityError(
                f"more than {MAX_STEPS:,} turns of loops for one row, or as much work on long "
                "texts, lists or numbers"
            )

    def _measure(self, name: str, values: Sequence[Any], steps: int = 0) -> None:
        """Charges what a filter, test or method works on, and what it makes of it at most."""
        self._charge(sum(map(_size, values)) + _growth(name, values), steps)

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter or test, measured whenever it is called."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            args = _lists_to_join(name, args)
            self._measure(name, (*args, *kwargs.values()))
            return function(*args, **kwargs)

        return update_wrapper(measured, function)  # with its marks: Jinja2 hands some filters more

    @pass_context  # so that Jinja2 does not call it once and for all where the value is constant
    def _counted(self, _context: Context, values: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes over."""
        for value in values:
            self._charge(0, steps=1)
            yield value

    def _concat(self, pieces: Iterable[str]) -> str:
        made = []
        for piece in pieces:
            self._charge(len(piece))
            made.append(piece)
        return "".join(made)


class _Measuring(NodeTransformer):
    """Puts `_counted` and `_measured` where Jinja2 calls neither a filter nor an operator."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja2's own names
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        part: Any
        for part in (node, *node.ops):
            part.expr = _filter(part.expr, "_measured")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(node.node, "_measured")
        return node

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:  # noqa: N802
        """A list that holds the same list twice, and so on, is longer than its memory says."""
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filter(node, "_measured")

    visit_Tuple = visit_Dict = visit_List  # noqa: N815


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _lists_to_join(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """An iterator can be looked at only once: what is to be joined becomes a list."""
    if name != "join":
        return values
    return tuple(list(value) if isinstance(value, Iterator) else value for value in values)


def _size(value: Any) -> int:
    """The letters of a text; for a list or an object about as many as it has as text."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return _size(value.keys()) + _size(value.values())
    if isinstance(value, list | tuple | range | KeysView | ValuesView | ItemsView):
        return len(value) * _LETTERS_OF_ITEM + sum(map(_size, value))
    return 0


def _growth(name: str, values: Sequence[Any]) -> int:
    """How many letters a filter or method adds to what it is given, at most."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if name in _REPEATING:
        sizes = sorted([1, 1, *numbers, *map(_size, values)])
        return sizes[-1] * sizes[-2]
    if name == "replace" and len(texts) > 2:
        return texts[0].count(texts[1]) * len(texts[2])
    if name in ("format", "format_map"):
        text = texts[0]
        width = sum(map(int, _NUMBER.findall(text)))
        width += sum(numbers) if _WIDTH_AMONG_VALUES.search(text) else 0
        return (text.count("%") + text.count("{")) * (width + sum(map(_size, values)))
    return 0
