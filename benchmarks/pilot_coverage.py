"""How often the interval of `batchrun estimate --pilot` holds the true cost.

Each trial makes a prompt set whose answers have lengths with a long tail (lognormal), takes a pilot
of it, and asks whether what all rows cost lies in the interval. No network, no files:

    python -m benchmarks.pilot_coverage    # the middle of the table of docs/cost.md, some minutes
"""

import argparse
import random
import statistics
from typing import NamedTuple

from batchrun.estimate.pilot import sum_range

ROWS = 1_319
PILOT = 100
TRIALS = 2_000
MEDIAN_TOKENS = 200
INPUT_TOKENS = (25, 190)
INPUT_USD, OUTPUT_USD = 2e-6, 8e-6  # for a token


class Coverage(NamedTuple):
    """Of many trials."""

    held: float  # share of the intervals that held the true cost
    above: float  # share of the true costs above the interval
    width: float  # median width of the interval, as a share of the true cost


def coverage(
    sigma: float, trials: int, seed: int, rows: int = ROWS, pilot: int = PILOT
) -> Coverage:
    """`sigma` of the logarithm of the answers' lengths; inputs are known beforehand."""
    draw = random.Random(seed)
    held = above = 0
    widths = []
    for _ in range(trials):
        inputs = [INPUT_USD * draw.randint(*INPUT_TOKENS) for _ in range(rows)]
        answers = [
            OUTPUT_USD * max(1, round(MEDIAN_TOKENS * draw.lognormvariate(0, sigma)))
            for _ in range(rows)
        ]
        true = sum(inputs) + sum(answers)
        picked = draw.sample(range(rows), pilot)
        known = sum(inputs[row] + answers[row] for row in picked)
        predicted = sum(inputs) - sum(inputs[row] for row in picked)
        found = sum_range([answers[row] for row in picked], rows - pilot, known, predicted)
        held += found.low <= true <= found.high
        above += true > found.high
        widths.append((found.high - found.low) / true)
    return Coverage(held / trials, above / trials, statistics.median(widths))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--pilot", type=int, default=PILOT, help="rows of a pilot")
    options.add_argument("--trials", type=int, default=TRIALS)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    print("| pilot | sigma | contained | true cost above | width |")
    print("| --- | --- | --- | --- | --- |")
    for sigma in (0.5, 1.0, 1.5):
        found = coverage(sigma, asked.trials, asked.seed, pilot=asked.pilot)
        print(
            f"| {asked.pilot} of {ROWS:,} | {sigma} | {found.held:.1%} | {found.above:.1%} "
            f"| {found.width:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
