"""The page as a browser shows it. Skipped where there is no Chromium (Debian: `chromium`)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from batchrun.reports.page.page_file import write_page
from tests.reports.chromium import PROGRAM, opened

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here; Debian: chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("vl_convert") is None, reason="needs the extra `report`"
    ),
]
_SEEN = """({
    wide: document.documentElement.scrollWidth,
    charts: [...document.querySelectorAll('figure svg')].map(one => one.clientWidth),
    scripts: document.scripts.length,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
    headline: document.getElementById('headline').textContent,
    words: [...document.querySelectorAll('.role-axis-label')].map(
        one => [...one.querySelectorAll('text')].map(text => text.textContent)),
    scrolls: [...document.querySelectorAll('.wide')].map(one => one.scrollWidth - one.clientWidth),
    edges: [...document.querySelectorAll('.wide')].map(
        one => getComputedStyle(one).backgroundImage),
    shares: [...document.querySelectorAll('.bar span')].map(one => one.clientWidth),
    figures: [...document.querySelectorAll('#figures div')].map(one => one.offsetTop),
    table: document.getElementById('slowest').clientWidth,
})"""


async def test_it_fits_wide_and_narrow_light_and_dark_and_on_paper(
    whole: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_page(whole, page)
    seen: dict[tuple[int, str], dict[str, Any]] = {}
    async with opened(tmp_path) as tab:
        for width in (1280, 400):
            for scheme in ("light", "dark"):
                await tab.open(page, width, scheme)
                seen[width, scheme] = await tab.evaluate(_SEEN)
        assert len(await tab.screenshot()) > 10_000
        assert (await tab.pdf()).startswith(b"%PDF")
        await tab.open(page, 800, "dark", media="print")
        printed = await tab.evaluate(_SEEN)
        assert tab.complaints() == []
        assert tab.requests() == {page.as_uri()}
    for (width, _), found in seen.items():
        assert found["wide"] <= width
        assert found["scripts"] == 0
        assert len(found["charts"]) >= 7
        assert min(found["charts"]) > 300
        for words in found["words"]:
            assert len(set(words)) == len(words) > 0
        assert min(found["shares"]) >= 2
        assert all("linear-gradient" in edge for edge in found["edges"])
        assert found["table"] > 0.9 * min(width, 1200)
        assert "240 rows" in found["headline"]
    assert max(seen[1280, "light"]["scrolls"]) == 0
    assert max(seen[400, "light"]["scrolls"]) > 0
    assert [len(set(seen[width, "light"]["figures"])) for width in (1280, 400)] == [1, 3]
    light, dark = seen[1280, "light"], seen[1280, "dark"]
    assert (light["paper"], printed["paper"]) == ("rgb(255, 255, 255)",) * 2
    assert dark["paper"] not in (light["paper"], "rgba(0, 0, 0, 0)")
    assert light["ink"] != dark["ink"]
