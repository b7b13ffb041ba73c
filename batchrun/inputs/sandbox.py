"""Where templates run: they reach nothing but the row, and one row's work and memory have an end.

Jinja2's own sandbox keeps attributes, mutation and `range` in bounds; loops within loops, powers
and padding are bounded here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import update_wrapper
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

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
