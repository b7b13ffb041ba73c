"""How often the intervals of `batchrun metrics` hold the truth, and how often `compare` errs.

Each trial draws questions of different difficulty, answers to them, and asks whether the default
95 % interval holds the mean of all questions that could have been drawn. Two models of the same
ability then answer the same questions: p below 0.05 is an error. No network, no files:

    python -m benchmarks.eval_coverage    # the table of docs/metrics.md, a few minutes
"""

import argparse
import random
from typing import NamedTuple

from batchrun.scoring.statistics import (
    MeanError,
    t_interval,
    two_sided_p,
    wilson_interval,
)
from tests.scoring.mean_errors import mean_error

TRIALS = 2_000
LEVEL = 0.95
QUESTION_SPREAD = 0.3  # correlation of two answers to one question, and of two questions ...
CLUSTER_SPREAD = 0.2  # ... of one cluster


class Setting(NamedTuple):
    """What an eval consists of."""

    clusters: int
    questions: int  # of each cluster
    samples: int  # of each question
    right: float  # mean probability

    @property
    def name(self) -> str:
        sized = f" of {self.questions}" if self.questions > 1 else ""
        return f"{self.clusters}{sized} x {self.samples} at {self.right:g}"


SETTINGS = (
    Setting(30, 1, 1, 0.9),
    Setting(30, 1, 8, 0.9),
    Setting(20, 1, 16, 0.97),
    Setting(164, 1, 10, 0.87),
    Setting(40, 10, 1, 0.95),
    Setting(12, 8, 4, 0.5),
)


class Coverage(NamedTuple):
    """Of many trials: shares."""

    default: float  # the interval held the truth: Wilson on an effective n
    t: float
    pooled: float  # if all answers counted as independent
    false_alarms: float  # p below 0.05 between models that do not differ


def coverage(setting: Setting, trials: int, seed: int) -> Coverage:
    draw = random.Random(seed)
    held = [0, 0, 0]
    alarms = 0
    answers = setting.clusters * setting.questions * setting.samples
    names = [at // setting.questions for at in range(setting.clusters * setting.questions)]
    clusters = names if setting.questions > 1 else None
    for _ in range(trials):
        chances = _chances(setting, draw)
        scores, others = (
            [_score(chance, setting.samples, draw) for chance in chances] for _ in range(2)
        )
        of = mean_error(scores, clusters)
        pooled_se = (of.mean * (1 - of.mean) / answers) ** 0.5
        pooled = MeanError(of.mean, pooled_se, answers, answers)
        ends = (
            wilson_interval(of, answers, LEVEL),
            t_interval(of, LEVEL),
            t_interval(pooled, LEVEL),
        )
        for at, found in enumerate(ends):
            held[at] += found is not None and found[0] <= setting.right <= found[1]
        paired = mean_error([b - a for a, b in zip(scores, others, strict=True)], clusters)
        if paired.se:
            alarms += two_sided_p(paired.mean / paired.se, paired.df) < 1 - LEVEL
    return Coverage(*(count / trials for count in (*held, alarms)))


def _chances(setting: Setting, draw: random.Random) -> list[float]:
    """Each question's probability of a right answer: a beta distribution, of its cluster's mean."""
    chances = []
    for _ in range(setting.clusters):
        mean = (
            _beta(setting.right, CLUSTER_SPREAD, draw) if setting.questions > 1 else setting.right
        )
        chances += [_beta(mean, QUESTION_SPREAD, draw) for _ in range(setting.questions)]
    return chances


def _beta(mean: float, spread: float, draw: random.Random) -> float:
    """`spread`: the correlation of two draws with the chance; the mean is `mean`."""
    if not 0 < mean < 1:
        return mean
    size = 1 / spread - 1
    return draw.betavariate(max(mean * size, 1e-9), max((1 - mean) * size, 1e-9))


def _score(chance: float, samples: int, draw: random.Random) -> float:
    return sum(draw.random() < chance for _ in range(samples)) / samples


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--trials", type=int, default=TRIALS)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    print("| questions x samples | default | t | samples pooled | false alarms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for setting in SETTINGS:
        found = coverage(setting, given.trials, given.seed)
        print(f"| {setting.name} | {' | '.join(f'{share:.1%}' for share in found)} |")


if __name__ == "__main__":
    main()
