"""What the speed benchmark computes from what it measures."""

import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contenders import Sent, stretches_s
from benchmarks.measures import Measure
from benchmarks.parts import disjoint, with_column
from benchmarks.rounds import Rounds, judge_rounds, render_rounds
from benchmarks.scale import between, bytes_a_row
from benchmarks.stall_watch import Stall
from benchmarks.timed import Break, Breaks, Sample, cpu_at, run_timed


def _sent(rows_per_s: float, answers_per_s: float | None = None) -> Sent:
    first_at, rows = 100.0, 1000
    ended_at = first_at + rows / rows_per_s
    last_at = first_at + rows / (answers_per_s or rows_per_s)
    return Sent(rows, 90.0, first_at, last_at, ended_at, 0.05, 80_000_000)


def _rounds(*runs: tuple[int, str, list[float]]) -> Rounds:
    return Rounds({(level, name): [_sent(each) for each in rates] for level, name, rates in runs})


def test_cpu_between_two_samples_grows_evenly() -> None:
    samples = [Sample(10.0, 0.0), Sample(11.0, 0.8), Sample(13.0, 1.2)]
    assert cpu_at(samples, 10.5) == pytest.approx(0.4)
    assert cpu_at(samples, 12.0) == pytest.approx(1.0)
    assert cpu_at(samples, 9.0) == 0.0
    assert cpu_at(samples, 14.0) == 1.2


def test_time_runs_from_the_first_request_until_all_is_stored() -> None:
    sent = _sent(500.0, 1000.0)
    assert sent.rows_per_s == pytest.approx(500)
    assert sent.answers_per_s == pytest.approx(1000)
    assert sent.cpu_us == pytest.approx(50)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    rounds = _rounds((64, "batchrun", [80.0, 40.0, 90.0]), (64, "bare", [100.0, 50.0, 100.0]))
    assert rounds.ratio(64, "batchrun", "bare") == pytest.approx(0.8)


def test_goals_are_judged_where_a_peer_comes_closest() -> None:
    rounds = _rounds(
        (64, "batchrun", [900.0]),
        (64, "bare", [1000.0]),
        (64, "lm-deluge", [300.0]),
        (64, "openai-httpx", [50.0]),
        (256, "batchrun", [800.0]),
        (256, "defaults", [1000.0]),
        (256, "lm-deluge", [400.0]),
        (256, "openai-httpx", [40.0]),
    )
    measures = judge_rounds(rounds)
    assert [round(one.batchrun, 3) for one in measures] == [0.9, 0.8, 2.0, 18.0]
    assert [one.met for one in measures] == [True, False, False, True]
    assert any("tuned" in line and "| 0.90 |" in line for line in render_rounds(rounds))


def test_without_peers_only_the_loops_are_judged() -> None:
    rounds = _rounds((64, "batchrun", [900.0]), (64, "bare", [1000.0]))
    assert [one.at_least for one in judge_rounds(rounds)] == [0.75]


def test_a_missed_goal_says_so() -> None:
    assert (
        Measure("x", 0.7, at_least=0.75).short_line() == "| x | at least 0.750 | 0.700 **missed** |"
    )
    assert Measure("x", 0.8).short_line() == "| x |  | 0.800 |"


def test_memory_that_shrank_grew_by_nothing() -> None:
    assert bytes_a_row(9_000, 1_000) == 9
    assert bytes_a_row(-9_000, 1_000) == 0


def test_only_stalls_while_sending_count() -> None:
    stalls = [Stall(at, at / 100, 0.0, 0.0, "") for at in (1.0, 2.0, 3.0, 4.0)]
    assert [one.at for one in between(stalls, 1.5, 3.5)] == [3.0, 2.0]


def test_parts_add_up_to_what_their_loops_took() -> None:
    names = "read execute settle gate parse bare send journal count show columns parquet"
    us = {name: float(at * at) for at, name in enumerate(names.split(), 3)} | {"read back": 1.0}
    parts = disjoint(us)
    whole = ("read", "execute", "send", "journal", "count", "show", "parquet", "read back")
    assert parts["all"] == pytest.approx(sum(us[name] for name in whole))
    assert sum(parts.values()) == pytest.approx(2 * parts["all"])


def test_a_table_of_parts_keeps_its_other_column() -> None:
    before = with_column([], {"parse": 4.0, "all": 9.0}, is_before=True)
    both = with_column(before, {"parse": 3.0, "count": 1.0, "all": 8.0}, is_before=False)
    assert both[2:] == ["| parse | 4.0 | 3.0 |", "| count |  | 1.0 |", "| all | 9.0 | 8.0 |"]
    again = with_column(both, {"parse": 5.0}, is_before=True)
    assert again[2:] == ["| parse | 5.0 | 3.0 |"]


def _held_up(*breaks: Break) -> Sent:
    return Sent(6, 90.0, 100.0, 119.0, 120.0, 0.05, 80_000_000, breaks)


def test_a_break_counts_for_nothing() -> None:
    sent = _held_up(Break(95.0, 97.0), Break(104.0, 112.0), Break(119.5, 119.75))
    assert sent.answers_per_s == pytest.approx(6 / (19 - 8))
    assert sent.rows_per_s == pytest.approx(6 / (20 - 8.25))


def test_a_stretch_begins_where_the_break_before_it_ended(tmp_path: Path) -> None:
    ends_s = [101.0, 102.0, 103.0, 113.0, 114.0, 119.0]
    ends = pa.array([int(at * 1e6) for at in reversed(ends_s)], pa.timestamp("us", "UTC"))
    (tmp_path / "responses").mkdir()
    pq.write_table(pa.table({"finished_at": ends}), tmp_path / "responses" / "part.parquet")
    sent = _held_up(
        Break(95.0, 97.0), Break(104.5, 112.0), Break(115.0, 116.0), Break(119.5, 119.75)
    )
    assert stretches_s(tmp_path, sent) == [None, 1.5, 1.5, None]


def test_a_process_is_held_up_while_something_else_is_done(tmp_path: Path) -> None:
    """It counts by itself, and nothing while another counts."""
    ticks = tmp_path / "ticks"
    counting = (
        f"import time; at = open({str(ticks)!r}, 'a', buffering=1)\n"
        "for each in range(100): at.write('.'); at.flush(); time.sleep(0.01)"
    )
    sizes: list[tuple[int, int]] = []

    def fill() -> None:
        before = ticks.stat().st_size
        time.sleep(0.2)
        sizes.append((before, ticks.stat().st_size))

    command = [sys.executable, "-c", counting]
    run = run_timed(command, tmp_path, None, breaks=Breaks(0.4, fill))
    assert run.exit_code == 0
    assert ticks.stat().st_size == 100
    assert len(run.breaks) == len(sizes) >= 2
    assert all(before == after for before, after in sizes)
    assert any(0 < before < 100 for before, after in sizes)
