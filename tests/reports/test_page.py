"""The page is one file that asks for nothing, and what a model said is never more than text."""

import importlib.util
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import msgspec
import pytest
from markupsafe import Markup

from batchrun.errors import JobError
from batchrun.records import Outcome
from batchrun.reports.page.page_file import PagePart, write_page

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vl_convert") is None, reason="needs the extra `report`"
)
_VOID = {"meta", "br", "hr", "img", "input", "link"}


class _Read(HTMLParser):
    """The page's elements, its tables, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs)["id"] or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag == "td":
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open:
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_page(whole, path) == path.stat().st_size
    return path


def test_the_page_asks_for_nothing_and_has_no_script(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    read = _Read(text)
    assert read.open == []
    kinds = {tag for tag, _ in read.elements}
    assert not kinds & {"script", "link", "img", "iframe", "object", "embed", "a", "use", "image"}
    names = {name for _, attributes in read.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href")]
    assert not re.search(r"url\(|@import", text)
    assert [one for tag, one in read.elements if tag == "meta" and "http-equiv" in one] == [
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; style-src 'unsafe-inline'",
        }
    ]
    assert len(text) < 500_000


def test_hostile_output_is_text_in_tables_samples_and_charts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("</style>") == 1
    read = _Read(text)
    tools = [row[0] for row in read.tables["tools"] if row]
    assert any(name.startswith("<script>alert(1)</script>") for name in tools)
    assert read.text.count("<script>alert(1)") >= 2  # a chart names the tool too


def test_the_figures_are_those_that_duckdb_computes(page: Path, whole: Path) -> None:
    sql = """SELECT count(*) FILTER (ok), count(*) FILTER (status = 'failed'),
             sum(input_tokens), sum(output_tokens), sum(len(attempts)) FROM read_parquet(?)"""
    ok, failed, given, made, attempts = duckdb.execute(
        sql, [f"{whole}/responses/*.parquet"]
    ).fetchall()[0]
    tables = _Read(page.read_text(encoding="utf-8")).tables
    figures = {name: {row[0]: row[1:] for row in rows if row} for name, rows in tables.items()}
    assert figures["outcomes"]["ok"][0] == f"{ok:,}"
    assert figures["outcomes"]["failed"][0] == f"{failed:,}"
    assert figures["tokens"]["input"][0] == f"{given:,}"
    assert figures["tokens"]["output"][0] == f"{made:,}"
    counts = [int(row[0].replace(",", "")) for row in figures["attempts"].values()]
    assert sum(counts) == attempts


def test_a_run_without_rows_has_a_page_and_the_run_directory_takes_none(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path / "run", [])
    write_page(path, tmp_path / "empty.html")
    empty = _Read((tmp_path / "empty.html").read_text())
    assert "0 rows, 0 ok" in empty.text
    assert empty.open == []
    with pytest.raises(JobError, match="lies in the run directory"):
        write_page(path, path / "run.json")


def test_a_page_of_long_texts_stays_small(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    huge = msgspec.json.encode({"model": "m", "input": "<&" * 200_000}).decode()
    made = [outcome(row) for row in range(100)]
    long = [
        msgspec.structs.replace(
            one, request=msgspec.structs.replace(one.request, body=huge.encode())
        )
        for one in made
    ]
    path = write(tmp_path / "run", long)
    assert write_page(path, tmp_path / "long.html") < 1_000_000


def test_key_figures_come_first_then_how_rows_ended_and_what_limited_the_run(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome], hostile: str
) -> None:
    path = write(tmp_path / "run", [outcome(row) for row in range(60)])
    ticks = [
        {"at": f"2026-09-21T14:13:{20 + at}.000+00:00", "event": "tick", "binds": hostile}
        for at in range(3)
    ]
    ended = {"at": "2026-09-21T14:13:23.000+00:00", "event": "finished"}
    (path / "events.jsonl").write_text("\n".join(map(json.dumps, [*ticks, ended])) + "\n")
    write_page(path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = _Read(text)
    assert read.open == []
    places = [
        text.index(mark)
        for mark in ('id="figures"', 'id="outcome-bar"', 'id="limits"', "<figure", "<table")
    ]
    assert places == sorted(places)
    figures = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text)
    assert [name for name, _ in figures] == ["Rows", "Ok", "Cost", "Tokens", "Time", "Throughput"]
    assert figures[0][1] == "60"
    assert "<title>prompts.jsonl, gpt-4.1, 2026-09-21</title>" in text
    assert "<script" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in read.text.partition("What limited the run")[2]


def test_a_module_may_add_a_part_above_the_charts(run: Path, tmp_path: Path) -> None:
    asked: list[Path] = []

    def parts(path: Path) -> list[PagePart]:
        asked.append(path)
        html = Markup("<p class='quiet'>{} right</p>").format("<b>3</b> & more")
        return [PagePart("scores", "Scores", html, "of 4 rows")]

    write_page(run, tmp_path / "page.html", parts=parts)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert asked == [run]
    assert "<p class='quiet'>&lt;b&gt;3&lt;/b&gt; &amp; more right</p>" in text
    assert text.index('id="outcome-bar"') < text.index('id="scores"') < text.index("<figure")
    assert _Read(text).open == []


def test_a_table_of_long_figures_has_the_whole_width(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    def made(row: int, factor: float) -> Outcome:
        one = outcome(row)
        return msgspec.structs.replace(one, cost_usd=factor * 0.0000201)

    for name, factor in (("long", 1.0), ("short", 1e5)):
        path = write(tmp_path / name, [made(row, factor) for row in (0, 1, 3, 8)])
        write_page(path, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        before = text.partition('id="head-spreads"')[0]
        assert ('<section class="full">' in before) == (name == "long")


def test_as_many_of_the_worst_rows_as_asked_for(run: Path, tmp_path: Path) -> None:
    write_page(run, tmp_path / "page.html", top=3)
    tables = _Read((tmp_path / "page.html").read_text(encoding="utf-8")).tables
    for name in ("slowest", "most_expensive"):
        assert len([row for row in tables[name] if row]) == 3
