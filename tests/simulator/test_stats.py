import msgspec

from batchrun.simulator.stats import Stats


def test_counts_add_up() -> None:
    stats = Stats()
    for now_s in (100.2, 100.9, 101.0):
        stats.arrived(now_s)
        stats.read(b"\x01" * 32)
        end = stats.begun()
    assert [stats.admitted(b"\x01" * 32) for _ in range(3)] == [0, 1, 2]
    stats.completed(b"\x01" * 32, (10, 20, 5), 101.5)
    stats.completed(b"\x01" * 32, (1, 2, 0), 101.5, "reset_within")
    stats.refused("requests", 101.5)
    stats.rejected(400)
    stats.faulted("reset_within")
    end()
    end()
    for count in (stats.created, stats.polled, stats.polled, stats.cancelled):
        count(b"\x01" * 32)
    assert msgspec.json.decode(msgspec.json.encode(stats.totals())) == {
        "requests": 3,
        "completions": 2,
        "destroyed": 1,
        "destroyed_by": {"reset_within": 1},
        "refused": {"requests": 1},
        "rejected": {"400": 1},
        "faults": {"reset_within": 1},
        "bodies": 1,
        "in_flight": 2,
        "most_in_flight": 3,
        "tokens": {"input": 11, "output": 22, "reasoning": 5},
        "background": {"created": 1, "polls": 2, "cancelled": 1},
        "by_second": {
            "100": {"requests": 2, "refusals": 0, "completions": 0},
            "101": {"requests": 1, "refusals": 1, "completions": 2},
        },
    }
    assert stats.by_body() == {
        "01" * 32: {
            "requests": 3,
            "completions": 2,
            "destroyed": 1,
            "background": {"created": 1, "polls": 2, "cancelled": 1},
        }
    }
