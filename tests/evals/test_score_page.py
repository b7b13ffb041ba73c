"""The page's part about scores: its figures, its size, and that it needs no script."""

import importlib.util
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from batchrun.evals.tables.score_page import score_parts
from batchrun.reports.page.page_file import write_page
from batchrun.reports.report_queries import read_report
from tests.evals.scored_runs import questions, write_run, write_scores
from tests.reports.chromium import PROGRAM, opened

Run = Callable[..., subprocess.CompletedProcess[str]]
HOSTILE = "</bdi></details><script>alert(1)</script>\x1b[2J\u202e&\"'"


class _Words(HTMLParser):
    """All text, and the tags that are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _html(run: Path) -> str:
    (part,) = score_parts(run)
    assert part.name == "scores"
    return str(part.html)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "base": questions({"a": "11", "b": "10", "c": "00", "d": "1-"}),
        "new": questions({"a": "11", "b": "10", "c": "11", "d": "11"}),
    }
    answers = {("b", 1): HOSTILE}
    made = write_run(tmp_path_factory.mktemp("made") / "run", values, answers=answers)
    write_scores(made, values, scorer="loose")
    return made


def test_a_matrix_has_a_mark_for_each_sample_worst_first(run: Path) -> None:
    html = _html(run)
    rows = re.findall(r'<details class="([^"]*)"><summary.*?</summary>', html)
    assert rows == ["w d", "w", "n", ""]
    names = re.findall(r'<summary class="sc-line"><bdi>([^<\s]+)', html)
    assert names == ["c", "b", "d", "a"]
    marks = re.findall(r'<span class="sc-marks">(.*?)</span>', html)
    signs = [re.sub(r"<[^>]*>", "", mark) for mark in marks]
    assert signs == ["✗✗", "✓✓", "✓✗", "✓✗", "✓–", "✓✓", "✓✓", "✓✓"]  # noqa: RUF001
    for words in (">all 4<", "any wrong 2", "variants disagree 1", "not scored 1", "What loose"):
        assert words in html
    assert "7 of 8 scored" in html


def test_each_scorer_has_a_table_and_a_chart(run: Path) -> None:
    html = _html(run)
    assert html.count('<div class="sc-chart">') == 2
    assert html.count('role="img"') == 4
    lefts = [float(left) for left in re.findall(r"left: ([\d.]+)%", html)]
    assert all(0 <= left <= 100 for left in lefts)


def test_hostile_answers_stay_text(run: Path) -> None:
    found = _Words(_html(run))
    assert "script" not in found.tags
    text = "".join(found.words)
    assert "<script>alert(1)</script>" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_run_without_scores_has_no_such_part(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", {None: questions({"a": "1"})})
    (made / "scores" / "exact" / "scores.parquet").unlink()
    assert score_parts(made) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """520 prompts, three variants, four samples."""
    values = {
        name: questions({f"q{at}": format((at * 7 + shift) % 16, "04b") for at in range(520)})
        for shift, name in enumerate(("a", "b", "c"))
    }
    return write_run(tmp_path_factory.mktemp("large") / "run", values, text="é<" * 4_000)


def test_a_large_page_is_below_3_mb(large: Path) -> None:
    html = _html(large)
    assert len(html.encode()) < 2_700_000
    assert html.count("<details") == 500
    assert "20 further prompts are in the tables alone" in html
    assert ">all 500 of 520<" in html
    assert "é&lt;é" in html.partition('class="sc-side"')[2]


def test_random_rows_are_of_several_prompts(large: Path) -> None:
    names = [one.custom_id.partition("|")[0] for one in read_report(large).samples]
    assert len(set(names)) == len(names) == 3


def test_of_long_outputs_the_end_is_shown_and_calls_are_shown_once(tmp_path: Path) -> None:
    values = {"a": questions({f"q{at}": "01" for at in range(500)})}
    answers = {("q0", 0): '[{"name": "f", "arguments": {}}]', ("q1", 0): "7"}
    text = f"{'step by step, ' * 400}Answer: 7"
    html = _html(write_run(tmp_path / "run", values, text=text, answers=answers))
    assert html.count("Answer: 7</bdi>") == 1_000
    assert "arguments" not in html
    assert "sample 0: ✗ <bdi>7</bdi></b>" in html


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here; Debian: chromium")
@pytest.mark.skipif(
    importlib.util.find_spec("vl_convert") is None, reason="needs the extra `report`"
)
async def test_filters_work_without_a_script_wide_and_narrow(large: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert write_page(large, page, parts=score_parts) < 3_000_000
    shown = (
        "[...document.querySelectorAll('.sc-rows > details')].filter(d => d.offsetHeight).length"
    )
    async with opened(tmp_path) as tab:
        for width in (1280, 400):
            await tab.open(page, width, "light")
            assert await tab.evaluate("document.documentElement.scrollWidth") <= width
            assert await tab.evaluate("document.scripts.length") == 0
            counts = []
            for kind in "wdna":
                await tab.evaluate(f"document.getElementById('sc-{kind}').checked = true")
                counts.append(await tab.evaluate(shown))
            assert counts[3] == 500
            assert 0 < counts[0] <= 500
            assert counts[2] == 0
            await tab.evaluate("document.querySelector('.sc-rows details').open = true")
            opened_words = await tab.evaluate(
                "document.querySelector('.sc-rows details').innerText.includes('target: 42')"
            )
            assert opened_words
        assert tab.complaints() == []
        assert tab.requests() == {page.as_uri()}
