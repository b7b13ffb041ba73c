"""What many workers say becomes what one executor would say."""

from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import Activity, limits_in_words, paused_by
from batchrun.records import Totals
from batchrun.runner.cluster.fleet_view import added, joined


def test_totals_of_different_rows_add_up() -> None:
    one = Totals(rows=3, ok=2, statuses={"completed": 2, "failed": 1}, cost_usd=0.5)
    other = Totals(rows=1, ok=1, statuses={"completed": 1}, cost_usd=None, unpriced=1)
    both = added((one, other))
    assert (both.rows, both.ok, both.unpriced, both.cost_usd) == (4, 3, 1, 0.5)
    assert both.statuses == {"completed": 3, "failed": 1}
    assert added(()) == Totals()


def test_shares_of_a_limit_add_up_and_times_are_those_of_the_driver() -> None:
    def worker(used: int, most: int, now_s: float) -> Activity:
        slots = LimitStatus("requests in flight", used, most, of="in flight")
        cooldown = LimitStatus("cooldown", until_s=now_s + 5.0)
        return Activity(in_flight=used, is_limited=True, limits=(cooldown, slots), now_s=now_s)

    together = joined([worker(3, 10, 1_000.0), worker(4, 6, 77.0)], 5.0, is_stopping=False)
    assert (together.in_flight, together.is_limited, together.now_s) == (7, True, 5.0)
    words = limits_in_words(together)
    assert words == ("cooldown, next request in 5.0 s", "requests in flight (7 of 16)")
    assert paused_by(together) == "cooldown"


def test_an_endpoint_is_down_where_it_is_so_for_all_workers() -> None:
    status = LimitStatus("endpoint down", says="502", ends_s=90.0)
    down = Activity(limits=(status,), is_limited=True, now_s=50.0)
    up = Activity(limits=(LimitStatus("endpoint down"),), in_flight=3)
    assert paused_by(joined([down, down], 0.0, is_stopping=False)) == "endpoint down"
    assert joined([down, down], 0.0, is_stopping=False).limits[0].ends_s == 40.0
    assert paused_by(joined([down, up], 0.0, is_stopping=False)) is None
    assert joined([], 0.0, is_stopping=True) == Activity(is_stopping=True)
