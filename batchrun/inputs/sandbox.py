"""Jinja2's sandbox, in which a template's time and memory have a bound too.

Jinja2's own guards attributes, changes to values, and `range`. Here each row has a budget of turns
of loops, of letters and of seconds. An operation that could make very long texts, lists or numbers
is charged before it runs.
"""

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from functools import update_wrapper
from itertools import islice
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000  # for one row: turns of loops, and calls
MAX_LETTERS = 512 * 1024 * 1024  # that are made for one row
MAX_S = 4.0  # for one row
_STEPS_OF_CALL = 20  # a macro takes longer than a turn of a loop
_TURNS = 16  # of a loop that are charged together
_LETTERS_OF_ITEM = 128  # what an item of a list counts as, besides the letters in it

# Filters and methods that repeat what they are given, at most as often as the product of two sizes.
_REPEATING = (
    *("batch", "center", "expandtabs", "indent", "join", "ljust", "rjust", "round", "slice"),
    *("to_bytes", "tojson", "translate", "wordwrap", "zfill"),
)
_GROWING = frozenset((*_REPEATING, "format", "format_map", "replace"))
_NUMBER = re.compile(r"[0-9]{1,18}")
_WIDTH_AMONG_VALUES = re.compile(r"\*|:[^}]*\{")


class Sandbox(ImmutableSandboxedEnvironment):
    """Raises `SecurityError` where a template goes too far."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self,
        to_text: Callable[[Any], Any],
        tojson: Any,
        fromjson: Callable[[Any], Any],
        **options: Any,
    ) -> None:
        super().__init__(finalize=self._finalized, **options)
        self.start_row()
        self._to_text = to_text  # for what a template writes that is no text
        self.concat = self._concat  # type: ignore[method-assign] # takes any pieces, as "".join
        self.filters["tojson"] = tojson
        self.filters["fromjson"] = self._measured("", fromjson)
        for name in _GROWING & {*self.filters}:
            self.filters[name] = self._measured(name, self.filters[name])
        self.filters["_counted"] = self._counted
        self.filters["_measured"] = self._measured("", lambda value: value)
        self.globals["namespace"] = _PlainNamespace
        # Chance would make another request of the row at each reading.
        del self.filters["random"], self.globals["lipsum"]

    def start_row(self) -> None:
        """Another row: it has all steps, letters and seconds before it."""
        self._steps = self._letters = 0
        self._spent_s = self._last_s = 0.0

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._measure("format", left, *(right if isinstance(right, tuple) else (right,)))
        elif not (isinstance(left, int) and isinstance(right, int)):
            sizes = [one if isinstance(one, int) else _size(one) for one in (left, right)]
            self._charge(0, sizes[0] * sizes[1] if operator == "*" else sum(sizes))
        elif operator in ("*", "**") and abs(left) > 1:
            bits = left.bit_length()
            bits = bits * right if operator == "**" else bits + right.bit_length()
            self._charge(0, bits * bits // 16)  # as long as multiplying takes
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - Jinja2's own: a template may use any other name
        __self._charge(_STEPS_OF_CALL)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(__obj, LoopContext):  # a recursive loop
            args = tuple(__self._counted(__context, value) for value in args)
        elif not isinstance(owner, str | bytes | int):
            __self._measure("", *args, *kwargs.values())
        elif method.__name__ in _GROWING:
            args = _without_iterators(args)
            __self._measure(method.__name__, owner, *args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def call_filter(self, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """For the items of `map` and the like."""
        self._measure("", value)
        return super().call_filter(name, value, *args, **kwargs)

    def call_test(self, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        self._charge(1)
        return super().call_test(name, value, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Measuring().visit(source), *args, **kwargs)

    def charge_letters(self, letters: int) -> None:
        """For what a filter of another module is about to make."""
        self._charge(0, letters)

    def _charge(self, steps: int, letters: int = 0) -> None:
        now_s = time.perf_counter()
        # A longer time may be a pause of the whole process.
        self._spent_s += min(now_s - (self._last_s or now_s), MAX_S / 2)
        self._last_s = now_s
        self._steps += steps
        self._letters += max(letters, 0)
        if self._steps > MAX_STEPS or self._letters > MAX_LETTERS or self._spent_s > MAX_S:
            raise SecurityError(
                f"more than {MAX_STEPS:,} steps of loops, {MAX_LETTERS:,} characters or "
                f"{MAX_S:.0f} s for one row"
            )

    def _measure(self, name: str, *values: Any) -> None:
        """Charges the most letters that the filter or method can make of these values."""
        self._charge(0, sum(map(_size, values)) + _growth(name, values))

    def _measured(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, measured before it runs."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            args = _without_iterators(args)
            self._measure(name, *args, *kwargs.values())
            return run(*args, **kwargs)

        return update_wrapper(measured, run)  # with its marks: Jinja2 hands some filters more

    @pass_context  # so that Jinja2 does not call it once and for all where the value is constant
    def _counted(self, _context: Context, values: Iterable[Any]) -> Iterator[Any]:
        """The values that a loop takes, its turns charged."""
        iterator = iter(values)
        while turns := tuple(islice(iterator, _TURNS)):
            self._charge(len(turns))
            yield from turns

    def _finalized(self, value: Any) -> Any:
        """The text for a value; charged, since blocks gather such texts."""
        if type(value) is str:
            self._letters += len(value)
            return value
        return self._to_text(value)

    def _concat(self, pieces: Iterable[str]) -> str:
        made, letters = [], self._letters
        for piece in pieces:
            letters += len(piece)
            if letters > MAX_LETTERS:
                self._charge(0, MAX_LETTERS)
            made.append(piece)
        return "".join(made)


class _PlainNamespace(Namespace):
    """Without the text of its values, which may hold each other many times."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Measuring(NodeTransformer):
    """Adds `_counted`, `_measured` and `join` where Jinja2 calls no filter."""

    def visit(self, node: nodes.Node, *_args: Any, **_kwargs: Any) -> Any:
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.iter = _filter(node.iter, "_counted")
            case nodes.Concat():
                return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                # A list that holds a list twice, and so on, is longer than its memory says.
                return _filter(node, "_measured")
        return node


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    """The letters of a text; for a list or an object about as many as it has as text."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return _size(value.keys()) + _size(value.values())
    if isinstance(value, list | tuple | range | KeysView | ValuesView | ItemsView):
        return len(value) * _LETTERS_OF_ITEM + sum(map(_size, value))
    return 0


def _without_iterators(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """With lists for iterators, which can be read only once."""
    return tuple(list(value) if isinstance(value, Iterator) else value for value in values)


def _growth(name: str, values: Sequence[Any]) -> int:
    """How many letters a filter or method adds to what it is given, at most."""
    if name not in _GROWING:
        return 0
    texts = [value for value in values if isinstance(value, str)] or [""]
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if name == "replace":
        return texts[0].count(texts[1]) * len(texts[2]) if len(texts) > 2 else 0
    if name in _REPEATING:
        sizes = sorted([1, 1, *numbers, *map(_size, values)])
        return sizes[-1] * sizes[-2]
    width = sum(map(int, _NUMBER.findall(texts[0])))
    width += sum(numbers) if _WIDTH_AMONG_VALUES.search(texts[0]) else 0
    return (texts[0].count("%") + texts[0].count("{")) * (width + sum(map(_size, values)))
