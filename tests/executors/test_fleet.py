"""Workers of one run together, whatever befalls them: no limit is passed, and every row is done."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.executors.fleet_world import Caps, Row, World

MOST_S = 40 * 60.0  # rows at the lowest rates

ROWS = st.builds(
    Row,
    tokens=st.integers(1, 60),
    used=st.just(0),
    dollars=st.sampled_from((0.0, 0.01, 0.07, 0.3)),
    spent=st.just(0.0),
    lasts_s=st.sampled_from((0.0, 0.1, 1.5, 20.0)),
).flatmap(
    lambda row: st.builds(
        Row,
        tokens=st.just(row.tokens),
        used=st.integers(0, row.tokens),
        dollars=st.just(row.dollars),
        spent=st.none() | st.sampled_from((0.0, row.dollars / 3, row.dollars)),
        lasts_s=st.just(row.lasts_s),
    )
)
CAPS = st.builds(
    Caps,
    in_flight=st.integers(4, 12),
    requests=st.none() | st.integers(4, 80),
    tokens=st.none() | st.integers(50, 400),
    dollars=st.none() | st.sampled_from((0.5, 3.0, 100.0)),
)
KINDS = "tick tick tick deliver deliver report report repeat repeat_report lose lose_report"
EVENTS = st.lists(
    st.tuples(
        st.sampled_from((*KINDS.split(), "move", "move", "kill", "adopt")),
        st.integers(0, 1 << 16),
    ),
    max_size=120,
)


def happen(world: World, event: str, place: int) -> None:
    workers = sorted(world.machines)
    at = workers[place % len(workers)]
    match event:
        case "tick":
            world.tick(at)
        case "deliver" | "repeat" if world.ticks:
            world.deliver_tick(place % len(world.ticks), keep=event == "repeat")
        case "report" | "repeat_report" if world.reports:
            world.deliver_report(place % len(world.reports), keep=event == "repeat_report")
        case "lose" if world.ticks:
            del world.ticks[place % len(world.ticks)]
        case "lose_report" if world.reports:
            del world.reports[place % len(world.reports)]
        case "move":
            world.move((0.02, 0.3, 2.0, 61.0)[place % 4])
        case "kill" if world.machines[at].is_alive:
            world.kill(at)
        case "adopt" if not world.machines[at].is_alive:
            world.adopt(at)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=40),
    caps=CAPS,
    workers=st.integers(1, 4),
    events=EVENTS,
    seed=st.integers(0, 99),
)
def test_no_limit_is_passed_and_every_row_is_leased_until_it_is_complete(
    rows: list[Row], caps: Caps, workers: int, events: list[tuple[str, int]], seed: int
) -> None:
    world = World(rows, caps, workers, seed)
    for event, place in events:
        happen(world, event, place)
    if world.settle(MOST_S):
        assert sorted(world.witness.stored) == list(range(len(rows)))
        return
    # Only a budget may end it: no row that waits fits into what is left of it.
    assert caps.dollars is not None
    assert world.fleet.stop_reason(world.now_s) is not None


@pytest.mark.parametrize("seed", range(3))
def test_a_run_under_all_limits_goes_on_through_a_bad_hour(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        Row(tokens := draw.randint(1, 80), draw.randint(0, tokens), 0.01, 0.005, draw.random())
        for _ in range(300)
    ]
    world = World(rows, Caps(9, 200, 6000, 100.0), 3, seed)
    while len(world.witness.stored) < len(rows):
        for at in list(world.machines):
            world.tick(at)
        while world.ticks and draw.random() < 0.9:
            world.deliver_tick(draw.randrange(len(world.ticks)), keep=draw.random() < 0.1)
            if world.ticks and draw.random() < 0.1:
                world.ticks.pop()
        while world.reports and draw.random() < 0.9:
            world.deliver_report(draw.randrange(len(world.reports)))
        if draw.random() < 0.02:
            at = draw.choice(sorted(world.machines))
            if world.machines[at].is_alive:
                world.kill(at)
        for at in [at for at, one in world.machines.items() if not one.is_alive]:
            if draw.random() < 0.1:
                world.adopt(at)
        world.move(draw.choice((0.1, 0.25, 0.4)))
        assert world.now_s < 1000.0 + 3600.0
    assert sorted(world.witness.stored) == list(range(300))
