"""Without a terminal: a line every 30 s and at changes of state, and little of it in all."""

import io
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import Activity, bottleneck
from batchrun.progress.display import Progress
from batchrun.progress.summary import RunCounters, Summary
from batchrun.records import Totals

ROWS, ROWS_PER_S, LOOK_S = 1_000_000, 300, 0.25
FULL = LimitStatus("requests in flight", 1_000, 1_000, of="in flight")
RATE = LimitStatus("x-ratelimit-limit-requests", None, 18_000, of="requests", per_s=300.0)


class Seen(io.StringIO):
    """What was written, line by line, and when by the clock that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.lines.append((self.now_s, text))
        return super().write(text)


def _limits(now_s: float) -> tuple[LimitStatus, ...]:
    """A cooldown of 2 s in every 7; an outage of 40 s in every ten minutes."""
    down = LimitStatus("endpoint down", 12, until_s=now_s + 3 if now_s % 600 < 40 else None)
    cooling = now_s % 7 < 2
    cooldown = LimitStatus("cooldown", until_s=now_s + 1.2 if cooling else None)
    return (cooldown, FULL, RATE, down) if cooling else (FULL, RATE, down, cooldown)


def _looks() -> Iterator[tuple[float, Summary]]:
    for look in range(int(ROWS / ROWS_PER_S / LOOK_S) + 1):
        now_s = look * LOOK_S
        rows = min(ROWS, int(now_s * ROWS_PER_S))
        failed = rows // 50
        totals = Totals(
            rows=rows,
            ok=rows - failed,
            statuses={"completed": rows - failed, "failed": failed // 2, "no_answer": failed // 2},
            error_kinds={"server_error": failed // 2, "timeout": failed // 2},
            attempts=rows + rows // 10,
            attempt_kinds={"first": rows, "retry": rows // 10},
            input_tokens=1_300 * rows,
            output_tokens=320 * rows,
            cost_usd=0.0049 * rows,
        )
        activity = Activity(
            in_flight=1_000,
            retrying=120,
            retries=240,
            is_limited=True,
            limits=_limits(now_s),
            now_s=now_s,
        )
        said = RunCounters(totals, 0.0).summary(
            run="runs/million",
            state="running",
            rows=ROWS,
            now_s=now_s,
            activity=activity,
            binds=bottleneck(activity, 0.3, 0.0),
            cap_usd=6_000.0,
        )
        yield (
            now_s,
            replace(
                said,
                rows_per_s=299.7,
                requests_per_s=329.4,
                tokens_per_s=486_123.5,
                time_left_s=(ROWS - rows) / ROWS_PER_S,
                p50_s=2.41,
                p99_s=14.3,
            ),
        )


def test_a_run_of_a_million_rows_writes_less_than_100_kb_of_progress() -> None:
    seen = Seen()
    progress = Progress(seen, clock=lambda: seen.now_s)
    changes, before = 0, None
    for now_s, summary in _looks():
        seen.now_s = now_s
        progress.show(summary)
        changes += summary.paused_by != before
        before = summary.paused_by
    assert changes > 800
    assert 110 < len(seen.lines) < 400
    assert 20_000 < len(seen.getvalue().encode()) < 100_000
    assert all(line.startswith("running: ") and line.endswith("\n") for _, line in seen.lines)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 40), st.sampled_from([None, "cooldown", "endpoint down"])),
        max_size=60,
    )
)
def test_no_state_is_said_twice_in_30_s_and_no_30_s_pass_in_silence(
    looks: list[tuple[float, str | None]],
) -> None:
    seen = Seen()
    progress = Progress(seen, clock=lambda: seen.now_s)
    summary = RunCounters(Totals(), 0.0).summary(run="r", state="running", rows=9, now_s=1.0)
    said: dict[str | None, float] = {}
    last_s = None
    for after_s, paused_by in looks:
        seen.now_s += after_s
        lines = len(seen.lines)
        progress.show(replace(summary, paused_by=paused_by))
        if len(seen.lines) > lines:
            assert len(seen.lines) == lines + 1
            assert seen.now_s - said.get(paused_by, -30.0) >= 30
            said[paused_by] = last_s = seen.now_s
        else:
            assert paused_by in said
            assert last_s is not None
            assert seen.now_s - last_s < 30
