"""A report as one HTML page: no script, no network, light and dark, fit to print.

What rows or models said is only text in it; a policy in the page forbids the rest.
"""

import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from batchrun.errors import JobError
from batchrun.formats.printable import one_line
from batchrun.records import JsonObject
from batchrun.reports.charts import charts
from batchrun.reports.export import check_target, replacing
from batchrun.reports.report_queries import read_report
from batchrun.reports.report_sections import headline, remarks, sections
from batchrun.version import VERSION

_TEMPLATE = Path(__file__).with_name("page.html")
_SIZE = re.compile(r'width="[\d.]+" height="[\d.]+" (?=viewBox)')
# A mark's words become what a mouse that rests on it shows.
_MARK = re.compile(r'(<path aria-label="([^"]*)" role="graphics-symbol"[^>]*)/>')


def write_page(path: Path, target: Path) -> int:
    """`target` is the page, whole or not at all; its size in bytes is returned.

    Raises `JobError` where it can be no such file or the extra `report` is missing, `StoreError`.
    """
    check_target(path, target)
    report = read_report(path)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        name=one_line(report.run),
        headline=headline(report),
        remarks=remarks(report),
        charts=[(chart, Markup(_drawn(chart.spec))) for chart in charts(report)],  # noqa: S704
        sections=sections(report),
        version=VERSION,
    )
    page = text.encode("utf-8", "replace")
    with replacing(target) as temporary:
        temporary.write_bytes(page)
    return len(page)


def _drawn(spec: JsonObject) -> str:
    """The chart as SVG; Vega escapes its texts."""
    try:
        import vl_convert  # noqa: PLC0415 - an extra, and large
    except ImportError as error:
        raise JobError(
            "the page's charts are drawn by vl-convert, which is not installed; "
            "pip install 'batchrun[report]', or leave --html out"
        ) from error
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return _MARK.sub(r"\1><title>\2</title></path>", _SIZE.sub("", drawn, count=1))
