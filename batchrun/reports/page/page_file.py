"""A report as one HTML page: no script, no network, light and dark, fit to print.

What rows or models said is only text in it; a policy in the page forbids the rest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from msgspec import Struct

from batchrun.formats.printable import one_line
from batchrun.formats.text_tables import Section
from batchrun.reports.export import check_target, replacing
from batchrun.reports.page import overview
from batchrun.reports.page.charts import charts, drawn
from batchrun.reports.page.palette import DARK, LIGHT
from batchrun.reports.report_queries import TOP_ROWS, read_report
from batchrun.reports.report_sections import headline, remarks, sections
from batchrun.version import VERSION

_TEMPLATE = Path(__file__).with_name("page.html")

_MOST_COLUMNS, _MOST_CHARACTERS = 6, 57  # of a table that stands beside another
_NAME = 18  # characters of its first column


class PagePart(Struct, frozen=True):
    """A part of the page that another module makes; it stands above the charts.

    `html` is safe already: `Markup.format` and jinja2 with autoescape make such text. It has no
    script, no link and no address, and uses the page's variables for colours (`page.html`).
    """

    name: str  # the id of its element
    title: str
    html: Markup
    note: str | None = None


def write_page(
    path: Path,
    target: Path,
    *,
    top: int = TOP_ROWS,
    parts: Callable[[Path], Sequence[PagePart]] = lambda _: (),
) -> int:
    """`target` is the page, whole or not at all; its size in bytes is returned.

    `top`: of the slowest and the most expensive rows. `parts`: further ones, of the run.
    Raises `JobError` where it can be no such file or the extra `report` is missing, `StoreError`.
    """
    check_target(path, target)
    report = read_report(path, top=top)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        name=one_line(report.run),
        title=overview.title_words(report),
        headline=headline(report),
        figures=overview.key_figures(report),
        shares=overview.outcome_shares(report),
        limits=overview.limit_lines(report.timeline),
        times=overview.time_places(report.timeline) if report.timeline else None,
        remarks=remarks(report),
        parts=parts(path),
        charts=[(chart, Markup(drawn(chart.spec))) for chart in charts(report)],  # noqa: S704
        narrow=[one for one in sections(report) if not _is_wide(one)],
        wide=[one for one in sections(report) if _is_wide(one)],
        light=list(enumerate(LIGHT, 1)),
        dark=list(enumerate(DARK, 1)),
        version=VERSION,
    )
    page = text.encode("utf-8", "replace")
    with replacing(target) as temporary:
        temporary.write_bytes(page)
    return len(page)


def _is_wide(section: Section) -> bool:
    if section.words > 1 or section.message or len(section.heads) > _MOST_COLUMNS:
        return True
    sizes = [max(map(len, column)) for column in zip(section.heads, *section.rows, strict=True)]
    sizes[0] = min(sizes[0], _NAME)  # what is longer stands in several lines
    return sum(sizes) > _MOST_CHARACTERS
