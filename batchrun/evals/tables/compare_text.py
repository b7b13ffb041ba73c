"""Comparisons as text: tables, the first flips, CSV, JSON."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from batchrun.evals.compare import Comparison, Comparisons, Flip
from batchrun.evals.tables.figure_tables import (
    FigureTable,
    chance,
    figure,
    figure_table,
    interval_text,
    write_figures,
)
from batchrun.formats.printable import brief

_Column = tuple[str, Callable[[Comparison], str]]
_MOST_ANSWER = 30  # characters


def write_comparisons(
    found: Comparisons, form: str, stream: TextIO, columns: str | None = None
) -> None:
    """As `write_figures`."""
    tables = _tables(found, with_flips=columns is None)
    write_figures(found, _csv(found.lines), tables, form, stream, columns)


def _tables(found: Comparisons, *, with_flips: bool) -> Iterator[FigureTable]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for line in found.lines:
        groups.setdefault((line.name, line.base), []).append(line)
    for (name, base), lines in groups.items():
        names = list(_names(found))
        yield figure_table(f"{name}: against {base}", names, _figures(found), lines)
        for line in lines if with_flips else ():
            if line.flips:
                yield _flips(line)


def _names(found: Comparisons) -> Iterator[_Column]:
    yield "other", lambda line: line.other
    if found.by is not None:
        yield found.by, lambda line: "(null)" if line.by is None else line.by


def _figures(found: Comparisons) -> Iterator[_Column]:
    yield "questions", lambda line: f"{line.pairs:,}"
    if found.cluster is not None:
        yield "clusters", lambda line: f"{line.clusters:,}"
    yield "base mean", lambda line: figure(line.base_mean, line.se)
    yield "other mean", lambda line: figure(line.other_mean, line.se)
    yield "difference", _difference
    yield "SE", lambda line: figure(line.se, line.se)
    yield (
        f"{100 * found.level:.4g} % interval",
        lambda line: interval_text(line.low, line.high, line.se),
    )
    yield "p", lambda line: chance(line.p)
    yield "p (Holm)", lambda line: chance(line.p_holm)
    yield "gained", lambda line: "" if line.gained is None else f"{line.gained:,}"
    yield "lost", lambda line: "" if line.lost is None else f"{line.lost:,}"
    yield "McNemar p", lambda line: chance(line.mcnemar_p)
    yield "unpaired SE", lambda line: figure(line.unpaired_se, line.unpaired_se)
    yield "unpaired p", lambda line: chance(line.unpaired_p)
    yield "correlation", lambda line: "" if line.correlation is None else f"{line.correlation:.2f}"
    yield "seen at 80 % power", lambda line: figure(line.detectable, line.detectable)


def _difference(line: Comparison) -> str:
    text = figure(line.difference, line.se)
    return f"+{text}" if line.difference > 0 else text


def _flips(line: Comparison) -> FigureTable:
    of = ", ".join(filter(None, (line.name, line.other, line.by)))
    shown = len(line.first_flips)
    texts = [text or "" for flip in line.first_flips for text in _texts(flip)]
    are_long = sum(len(text) > 2 * _MOST_ANSWER for text in texts) > len(texts) / 2
    count = f"{shown} of {line.flips:,}" if shown < line.flips else ""
    has = "has them all" if count else ""
    has += (", with" if has else "has") + " targets and answers" if are_long else ""
    more = "; ".join(filter(None, (count, f"--flips FILE {has}" if has else "")))
    rows: list[tuple[str, ...]] = [
        (
            flip.custom_id,
            brief(flip.target or "", _MOST_ANSWER),
            *_side(flip.base_right, flip.base_samples, flip.base_answers),
            *_side(flip.other_right, flip.other_samples, flip.other_answers),
        )
        for flip in line.first_flips
    ]
    heads: tuple[str, ...] = ("custom_id", "target", "base", "its answer", "other", "its answer")
    if are_long:  # their beginnings say nothing
        heads, *rows = (line[::2] for line in (heads, *rows))
    title = f"{of}: flipped" + (f" ({more})" if more else "")
    return FigureTable(title, heads, tuple(rows), len(heads)).without_empty()


def _texts(flip: Flip) -> tuple[str | None, ...]:
    return (flip.target, *flip.base_answers, *flip.other_answers)


def _side(right: int, samples: int, answers: Sequence[str | None]) -> tuple[str, str]:
    """`right`, `wrong` or `3 of 4`, and the most frequent answer."""
    verdict = f"{right} of {samples}" if samples > 1 else ("right" if right else "wrong")
    given = sorted(answer for answer in answers if answer is not None)
    return verdict, brief(max(given, key=given.count, default=""), _MOST_ANSWER)


def _csv(lines: Sequence[Comparison]) -> Iterator[Sequence[Any]]:
    """The row of names, and a row for each line, with all digits."""
    names = [name for name in Comparison.__struct_fields__ if name != "first_flips"]
    yield names
    for line in lines:
        yield [getattr(line, name) for name in names]
