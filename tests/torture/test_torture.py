"""Runs ended at moments spread over their whole way, started again, and looked at each time."""

import os
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import count
from pathlib import Path
from threading import Lock

import pytest

from tests.torture.campaign import Campaign
from tests.torture.figures import Figures
from tests.torture.moments import Moment
from tests.torture.prompts import Prompts
from tests.torture.purse import Purse
from tests.torture.shapes import LONG, SHORT, Shape

_KILLS = int(os.environ.get("TORTURE_KILLS", "1000"))
_FIGURES = Path(__file__).parents[2] / "runs/torture.md"
_AT_A_TIME = 2 * (os.cpu_count() or 1)
_FEW = {
    "plain": ("PLANNING", "FIRST_ANSWER", "SEALING", "RESUMING", "STEADY"),
    "streamed": ("STOPPING", "START", "RETRYING"),
    "asking again": ("ASKING_AGAIN", "TWO_STARTS", "STOP", "FULL_DISK_STOP", "NO_DESCRIPTOR"),
}
_MORE = {
    "plain": ("RESUMING", "SEALING", "RESUMING", "STEADY", "FULL_DISK"),
    "streamed": ("FIRST_ANSWER", "STOPPING", "RESUMING", "SEALING", "START", "RETRYING"),
    "asking again": ("FULL_DISK", "ASKING_AGAIN", "FULL_DISK", "ASKING_AGAIN"),
}
_WEIGHTS = {Moment.STEADY: 4, Moment.SEALING: 4, Moment.RESUMING: 2, Moment.ASKING_AGAIN: 4}


@pytest.mark.parametrize(
    "names", [pytest.param(_FEW, id="few"), pytest.param(_MORE, id="more", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("shape", SHORT, ids=lambda shape: shape.name)
def test_a_few_kills_lose_nothing_and_pay_for_nothing_twice(
    tmp_path: Path,
    environment: Mapping[str, str],
    shape: Shape,
    names: Mapping[str, Sequence[str]],
) -> None:
    prompts = Prompts(tmp_path / "never_killed", environment, shape)
    moments = [Moment[name] for name in names[shape.name]]
    campaign = Campaign(tmp_path / "killed", environment, shape, prompts, seed=1)
    figures = campaign.play(moments, Purse(len(moments)))
    assert figures.kills.total() > 0


def _drawn(shape: Shape, seed: int) -> list[Moment]:
    """Moments in the order in which one run is to be killed at them."""
    passed = {Moment.RETRYING} if not shape.faults else set()
    passed |= set() if shape.asks_again else {Moment.ASKING_AGAIN}
    moments = [moment for moment in Moment if moment not in passed]
    weights = [_WEIGHTS.get(moment, 1) for moment in moments]
    return random.Random(seed).choices(moments, weights, k=100)


@pytest.mark.torture
@pytest.mark.timeout(4 * 3_600)
def test_a_thousand_kills_lose_nothing_and_pay_for_nothing_twice(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    sets = [Prompts(tmp_path / shape.name, environment, shape) for shape in LONG]
    purse, figures, seeds, lock = Purse(_KILLS), Figures(), count(), Lock()

    def work() -> None:
        while not purse.is_empty:
            with lock:
                seed = next(seeds)
            shape = LONG[seed % len(LONG)]
            folder = tmp_path / f"{shape.name}-{seed}"
            campaign = Campaign(folder, environment, shape, sets[seed % len(LONG)], seed)
            came = campaign.play(_drawn(shape, seed), purse)
            with lock:
                figures.add(came)
                sys.stderr.write(f"{figures.kills.total():,} kills, {figures.runs:,} runs\n")

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for worker in as_completed([pool.submit(work) for _ in range(_AT_A_TIME)]):
            worker.result()
    _FIGURES.parent.mkdir(exist_ok=True)
    _FIGURES.write_text(figures.told() + "\n")
    sys.stderr.write(f"{figures.told()}\n")
    assert figures.kills.total() == _KILLS
