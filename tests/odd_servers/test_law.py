"""20,000 odd exchanges in whole runs hold the law; a short form of 400 runs each time.

Each run has good rows among odd ones. The same mode, transport and number make the same rows.
"""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

import batchrun
from batchrun import Summary
from tests.both_transports import has_fast_transport, transport
from tests.odd_servers.cases import MODES, MOST_ATTEMPTS, Case
from tests.odd_servers.deviations import cases, make_case, usable
from tests.odd_servers.law import PRICES, broken
from tests.odd_servers.row_server import RowServer, serving
from tests.waiting import HANG_S

__all__ = ["transport"]
SHORT_ROWS, LONG_ROWS, LONG_RUNS = 70, 480, 7  # of each mode over each transport


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls come often, and what a server forgets it has forgotten soon."""
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setattr("batchrun.transport.background._FIRST_POLL_S", 0.02)
    monkeypatch.setattr("batchrun.transport.background._LONGEST_POLL_S", 0.05)
    monkeypatch.setattr("batchrun.transport.background.FORGOTTEN_S", 1.5)


async def ran(folder: Path, rows: list[Case], mode: str) -> tuple[Summary, Path, RowServer]:
    """One whole run over these rows."""
    source, run = folder / "prompts.jsonl", folder / "run"
    source.write_text("".join(json.dumps(case.row) + "\n" for case in rows))
    async with serving(rows) as server:
        job = batchrun.load_job(
            source,
            {
                "request.model": "m",
                "endpoint.base_url": server.base_url,
                "endpoint.mode": mode,
                "limits.concurrency": 32,
                "retry.max_attempts": MOST_ATTEMPTS,
                "retry.max_wait_s": 0.01,
                "output.path": str(run),
                "pricing.m": PRICES,
                "aliases": {"m-2026-11-01": "m", "上游/m": "m"},
            },
        )
        async with asyncio.timeout(HANG_S):
            return await batchrun.run_async(job), run, server


async def hold(folder: Path, rows: list[Case], mode: str) -> list[str]:
    """Where one whole run does not hold the law."""
    summary, run, server = await ran(folder, rows, mode)
    return broken(summary, run, rows, server)


def told(wrong: list[str]) -> str:
    return f"{len(wrong)} times:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("mode", MODES)
async def test_some_odd_exchanges_hold_the_law(mode: str, transport: str, tmp_path: Path) -> None:
    seed = 1 if transport == "fast" else 2
    wrong = await hold(tmp_path, cases(seed, mode, SHORT_ROWS, usable(mode, transport)), mode)
    assert not wrong, told(wrong)


@pytest.mark.long
@pytest.mark.parametrize("number", range(LONG_RUNS))
@pytest.mark.parametrize("mode", MODES)
async def test_many_odd_exchanges_hold_the_law(
    number: int, mode: str, transport: str, tmp_path: Path
) -> None:
    seed = 1000 + 2 * number + (transport == "fast")
    wrong = await hold(tmp_path, cases(seed, mode, LONG_ROWS, usable(mode, transport)), mode)
    assert not wrong, told(wrong)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
async def test_each_deviation_alone_holds_the_law(mode: str, tmp_path: Path) -> None:
    each = usable(mode, "fast" if has_fast_transport else "session")
    rows = cases(0, mode, 5 * len(each) // 2, each, pairs=False)
    assert {case.names[0] for case in rows if case.names} == {one.id for one in each}
    wrong = await hold(tmp_path, rows, mode)
    assert not wrong, told(wrong)


async def test_what_breaks_the_law_is_told(tmp_path: Path) -> None:
    rows = [make_case(3, "plain", f"r{number}", (), is_good=True) for number in range(9)]
    summary, run, server = await ran(tmp_path, rows, "plain")
    assert broken(summary, run, rows, server) == []
    case = rows[0]

    def wrong(**fields: object) -> str:
        changed = dataclasses.replace(case, **fields)  # type: ignore[arg-type]
        return "\n".join(broken(summary, run, [changed, *rows[1:]], server))

    usage = {**case.meant["usage"], "output_tokens": 1}
    assert "output_text" in wrong(meant={**case.meant, "output": []})
    assert "output_tokens" in wrong(meant={**case.meant, "usage": usage})
    assert "an attempt (None) costs" in wrong(meant={**case.meant, "usage": usage})
    assert "model" in wrong(meant={**case.meant, "model": "another"})
    assert "asked 1 times instead of 2" in wrong(kinds=["server_error"])
    assert "no row" in wrong(row={**case.row, "custom_id": "r99"})
    assert "error_kind" in wrong(kind="empty_output")
    assert "summary" in wrong(kind="empty_output")
