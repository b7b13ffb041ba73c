"""What a terminal shows of a run: a bar across its width, and lines of facts below it.

The bar is green for rows that are ok, yellow for answers that are not, red for rows without one.
"""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from batchrun.formats.printable import brief, cut, one_line
from batchrun.progress.summary import Summary, WorkerState
from batchrun.progress.summary_text import (
    facts_in_words,
    not_ok_counts,
    oldest_in_words,
    rows_in_words,
    time_left_in_words,
    worker_in_words,
)
from batchrun.records import FAILED, SHORTFALLS

OK, UNUSABLE, NO_ANSWER, WAITS = "green", "yellow", "bold red", "yellow"
_INDENT = 14  # columns of the names of lines
_LINES = 2  # of what is as long as a server's last words
_EXAMPLE = 120  # characters of an error's message
_WORKERS = 8  # with a line of their own, those that need to be looked at first
_TIME_LEFT = 15  # columns, so that the bar keeps its length
_MESSAGES = ("errors", "stopping", "waiting", "limited by", "waiting for")  # lines of words
_LATE = ("silent", "lost")  # states of workers
_NO_ROW = (*FAILED, "invalid")  # statuses of rows without an answer
_WORDS = {
    "empty_output": "empty",
    "invalid_output": "not fitting the schema",
    "no_answer": "without an answer",
    "invalid": "bad and not sent",
}


class _Bar:
    """Cells of one colour for each part of all rows; what is there has at least one."""

    def __init__(self, parts: dict[str, int], total: int) -> None:
        """`parts`: styles to rows; together at most `total`."""
        self._parts, self._total = parts, total

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        done, rest = "#-" if options.ascii_only else "━─"
        sizes = bar_cells(list(self._parts.values()), self._total, width)
        for style, size in zip(self._parts, sizes, strict=True):
            yield Segment(done * size, console.get_style(style))
        yield Segment(rest * (width - sum(sizes)), console.get_style("bright_black"))


def bar_cells(parts: list[int], total: int, width: int) -> list[int]:
    """How many of `width` cells each part of `total` rows has; all are full only at the end."""
    rows = sum(parts)
    if not rows:
        return [0] * len(parts)
    least = sum(map(bool, parts))
    cells = width if rows >= total else max(least, min(width - 1, width * rows // total))
    sizes = [max(1, cells * part // rows) if part else 0 for part in parts]
    sizes[sizes.index(max(sizes))] += cells - sum(sizes)
    return sizes


def panel(summary: Summary, columns: int, countdown: str | None = None) -> Group:
    """The whole panel for a terminal so wide; `countdown`: how long what is in flight may take."""
    return Group(_head(summary), *_facts(summary, columns, countdown))


def _head(summary: Summary) -> Table:
    percent = 100 * summary.settled // summary.rows if summary.rows else 100
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    left = time_left_in_words(summary)
    cells: list[RenderableType] = [
        Text("waiting" if _is_down(summary) else summary.state, _state_style(summary)),
        _bar(summary),
        Text(f"{percent}%{left and ','}"),
    ]
    if left:
        head.add_column(min_width=_TIME_LEFT, no_wrap=True)
        cells.append(Text(f"{left} left"))
    head.add_row(*cells)
    return head


def _is_down(summary: Summary) -> bool:
    return summary.state == "running" and summary.paused_by == "endpoint down"


def _state_style(summary: Summary) -> str:
    if summary.paused_by == "endpoint down":
        return NO_ANSWER
    if summary.paused_by or summary.state != "running":
        return f"bold {WAITS}"
    return "bold"


def _bar(summary: Summary) -> _Bar:
    counts = not_ok_counts(summary)
    no_answer = sum(counts.get(status, 0) for status in _NO_ROW)
    parts = {NO_ANSWER: no_answer, UNUSABLE: summary.not_ok - no_answer, OK: summary.ok}
    again = summary.again  # these are not complete: their older outcomes are being replaced
    for style, rows in parts.items():
        parts[style] = max(0, rows - again)
        again -= rows - parts[style]
    return _Bar(dict(reversed(parts.items())), summary.rows)


def _facts(summary: Summary, columns: int, countdown: str | None) -> Iterator[Text | Table]:
    """Lines with their names, longer ones indented further."""
    lines: dict[str, Text] = {"rows": _rows(summary)}
    for name, words in facts_in_words(summary).items():
        lines[name] = Text(", ".join(words))
    for one in _shown_workers(summary):
        lines[f"  {one.id}"] = Text(worker_in_words(one), WAITS if one.state in _LATE else "")
    if errors := _errors(summary):
        lines["errors"] = Text(errors, NO_ANSWER)
    if countdown:
        lines["stopping"] = Text(countdown, f"bold {WAITS}")
    elif summary.message is not None:  # what a user must do is shown whole
        lines["waiting"] = Text(one_line(summary.message), f"bold {WAITS}")
    else:
        most = _LINES * max(20, columns - _INDENT)
        style = {"endpoint down": NO_ANSWER, "cooldown": WAITS}.get(summary.paused_by or "", "")
        if binds := limited_by(summary):
            lines["limited by"] = Text(cut(one_line(binds), most), style)
        if oldest := oldest_in_words(summary):
            lines["waiting for"] = Text(cut(one_line(oldest), most))
    for name, text in lines.items():
        line = Text().append(f"  {name}".ljust(_INDENT), "dim")
        if _INDENT + text.cell_len <= columns:
            yield line.append_text(text)  # nearly all; to wrap takes longer
            continue
        table = Table.grid()
        table.add_column(width=_INDENT, no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row(line, text if name in _MESSAGES else _folded(text, columns - _INDENT))
        yield table


def _folded(text: Text, width: int) -> Text:
    """Lines that end after a comma, so that no figure stands without its word."""
    lines = [Text()]
    for piece in text.split(", ", include_separator=True):
        if lines[-1] and lines[-1].cell_len + cell_len(piece.plain.rstrip()) > width:
            lines[-1].rstrip()
            lines.append(Text())
        lines[-1].append_text(piece)
    return Text("\n").join(lines)


def _shown_workers(summary: Summary) -> list[WorkerState]:
    """As many as have a place, in their order."""
    urgent = sorted(summary.workers, key=lambda one: (one.state not in _LATE, -int(one.id[1:])))
    shown = urgent[:_WORKERS]
    return [one for one in summary.workers if one in shown]


def limited_by(summary: Summary) -> str:
    """What limits the run at the moment; empty where nothing was sent yet."""
    has_begun = summary.settled or summary.in_flight or summary.paused_by
    return summary.binds if summary.binds and has_begun else ""


def _rows(summary: Summary) -> Text:
    """`4,512 of 10,000: 4,440 ok, 12 failed, 7 empty`."""
    text = Text(f"{rows_in_words(summary)}: ")
    text.append(f"{summary.ok:,} ok", OK if summary.ok else "")
    for kind, count in not_ok_counts(summary).items():
        text.append(", ")
        style = NO_ANSWER if kind in _NO_ROW else UNUSABLE
        text.append(f"{count:,} {_WORDS.get(kind, kind)}", style)
    if summary.again:
        text.append(f"; {summary.again:,} of these are sent again")
    return text


def _errors(summary: Summary) -> str:
    """`timeout 12, rate_limit 3: slow down`: why rows have no answer, and what was said first."""
    kinds = {kind: n for kind, n in summary.error_kinds.items() if n and kind not in SHORTFALLS}
    if not kinds:
        return ""
    ordered = sorted(kinds, key=lambda kind: -kinds[kind])
    example = brief(summary.error_examples.get(ordered[0], ""), _EXAMPLE)
    words = ", ".join(f"{kind} {kinds[kind]:,}" for kind in ordered)
    if not example:
        return words
    return f"{words}: {example}" if len(ordered) == 1 else f"{words}; {ordered[0]}: {example}"
