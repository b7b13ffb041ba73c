"""All deviations, and exchanges with one or two of them."""

import random
from collections.abc import Sequence
from itertools import count, cycle

from tests.odd_servers import (
    answer_deviations,
    attempt_deviations,
    background_deviations,
    frame_deviations,
    stream_deviations,
)
from tests.odd_servers.cases import Case, Deviation, Wire, go_together
from tests.odd_servers.good_answers import answer_wire, events_of, good_case, written

DEVIATIONS: tuple[Deviation, ...] = (
    *answer_deviations.table.rows,
    *stream_deviations.table.rows,
    *stream_deviations.bytes_table.rows,
    *frame_deviations.table.rows,
    *attempt_deviations.table.rows,
    *background_deviations.table.rows,
)
_OUT_OF_REACH = 50  # draws of a second deviation that may make no sense


def make_case(
    seed: int, mode: str, name: str, deviations: Sequence[Deviation], *, is_good: bool = False
) -> Case:
    """An exchange with these deviations; the same for the same arguments."""
    draw = random.Random(f"{seed} {name}")
    needs = {need for deviation in deviations for need in deviation.needs}
    if is_good:
        needs |= {"text"}
    case = good_case(draw, mode, name, needs)
    case.names = [deviation.id for deviation in deviations]
    ordered = sorted(deviations, key=lambda one: one.layer)

    def apply(layers: Sequence[int]) -> None:
        for deviation in ordered:
            if deviation.layer in layers:
                deviation.apply(case)

    apply((0,))
    if mode == "stream":
        case.events = list(events_of(case.served, case.meant["status"], draw))
        apply((1, 2))
        case.wire = Wire(
            written(case, case.events), type="text/event-stream", framing="chunked", cost="usage"
        )
    else:
        case.wire = answer_wire(case, case.served)
    if mode == "background":
        background_deviations.begin(case)
    refusals = [one for one in ordered if one.slot == "instead"]
    for deviation in refusals:  # what frames an answer frames a refusal too
        deviation.apply(case)
    ordered = [one for one in ordered if one not in refusals]
    apply((3, 4))
    return case


def usable(mode: str, transport: str) -> list[Deviation]:
    """The deviations that make sense in a mode and over a transport (tests/both_transports.py)."""
    left_out = () if transport == "fast" else frame_deviations.FAST_ONLY
    return [one for one in DEVIATIONS if mode in one.modes and one.id not in left_out]


def cases(
    seed: int, mode: str, rows: int, deviations: Sequence[Deviation], *, pairs: bool = True
) -> list[Case]:
    """So many rows of a run: one in two is good, the others have one or two deviations."""
    draw = random.Random(f"{seed} {mode}")
    shuffled = draw.sample(deviations, len(deviations))
    in_turn = cycle(shuffled)
    found: list[Case] = []
    numbers = count()
    for place in range(rows):
        name = f"r{next(numbers):05}"
        if place < rows // 10 or place % 2:
            found.append(make_case(seed, mode, name, (), is_good=True))
            continue
        chosen = [next(in_turn)]
        if pairs and draw.random() < 0.6:
            for _ in range(_OUT_OF_REACH):
                other = draw.choice(deviations)
                if go_together(chosen[0], other, mode):
                    chosen.append(other)
                    break
        found.append(make_case(seed, mode, name, chosen))
    return found
