"""Messages between driver and workers survive the way."""

from batchrun.errors import ErrorKind, StopCause
from batchrun.executors.messages import (
    AGAIN,
    COMPLETE,
    TO_SEND,
    FailedRow,
    FleetTick,
    Lease,
    StopOrder,
    WorkerReport,
    WorkerStop,
    decode_report,
    decode_tick,
    encode,
)
from batchrun.limits.sharing.shares import (
    WHOLE,
    Allowance,
    Flow,
    ScopeNews,
    Shares,
    SharesUsed,
    Spending,
)
from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import Activity
from batchrun.records import Scope, Totals

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")


def test_a_tick_is_read_as_it_was_written() -> None:
    tick = FleetTick(
        seq=7,
        heard=6,
        leases=(Lease(3, 0, 10, 1010, 3, 4096, 0, bytes((TO_SEND, COMPLETE, AGAIN))),),
        shares=Shares(8, 10**18, Allowance(100, 1.5), Allowance(10**9, 2.5), WHOLE // 3),
        scopes=(ScopeNews(SCOPE, is_answered=True, cooldown_s=0.5, in_flight=12, down="503"),),
        last=True,
        stop=StopOrder("it is time", drop=True),
    )
    assert decode_tick(encode(tick)) == tick


def test_a_report_is_read_as_it_was_written() -> None:
    report = WorkerReport(
        number=3,
        seq=7,
        done=(1, 2),
        totals=Totals(rows=3, statuses={"completed": 3}, cost_usd=0.25),
        failures=(FailedRow(4, ErrorKind.BAD_REQUEST, "no"),),
        used=SharesUsed(3, 4, for_rate=True, requests=Flow(9, 8, 1), spending=Spending(1, 2, 3, 4)),
        stops=(WorkerStop("no money", StopCause.QUOTA, "RunStopped"),),
        activity=Activity(limits=[LimitStatus("cooldown")]),
    )
    again = decode_report(encode(report))
    assert encode(again) == encode(report)
    assert (again.totals, again.used, again.stops) == (report.totals, report.used, report.stops)
