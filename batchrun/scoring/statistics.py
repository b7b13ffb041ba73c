"""Means of scores with honest errors: functions on plain numbers, without I/O and libraries.

A question is asked one or several times; its score is the mean over its samples. Errors are over
questions, or over clusters of them, never over samples: samples of one question say little about
another question. Scores are dimensionless, mostly from 0 to 1; `level` is a share such as 0.95.

Sources: E. Miller, Adding Error Bars to Evals, arXiv:2411.00640 (clustered and paired errors);
E. B. Wilson, JASA 22 (1927) 209; Q. McNemar, Psychometrika 12 (1947) 153; S. Holm, Scand. J.
Statist. 6 (1979) 65; M. Chen et al., arXiv:2107.03374 (pass@k); S. Yao et al., arXiv:2406.12045
(pass^k); NIST DLMF 5.11 and 8.17 (gamma and beta functions).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from random import Random
from statistics import NormalDist

from msgspec import Struct

METHODS = ("auto", "t", "wilson", "bootstrap")
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 1
MOST_BOOTSTRAPPED = 20_000  # clusters; beyond, the t interval is the same and takes no time
SEEN_WITH_POWER_80 = 2.8  # standard errors: the normal quantiles of 0.975 and of 0.8 together
_MOST_STEPS = 100_000  # a million degrees of freedom take a thousand
_MOST_EXACT = 500  # flips that are counted by whole numbers
_TINY = 1e-300


class MeanError(Struct, frozen=True):
    """A mean over questions and its standard error."""

    mean: float
    se: float | None  # null where there are fewer than two clusters
    questions: int
    clusters: int  # as many as questions where they are independent

    @property
    def df(self) -> int:
        """Degrees of freedom of its t distribution."""
        return self.clusters - 1


class Variance(Struct, frozen=True):
    """Where the error of a mean comes from."""

    within: float  # mean variance of the samples of a question
    between: float  # variance of the questions' true scores
    se_of_many: float  # the standard error with infinitely many samples


def mean_error_of(mean: float, square_sum: float, questions: int, clusters: int) -> MeanError:
    """Of the scores s_i of n questions in G clusters; without any, each question is its own.

    SE = sqrt(G / (G - 1) * `square_sum`) / n, where that is sum_g (sum_{i in g} (s_i - m))^2.
    Without clusters this is sd(s_i) / sqrt(n).
    """
    se = None
    if clusters > 1:
        se = math.sqrt(clusters / (clusters - 1) * square_sum) / questions
    return MeanError(mean, se, questions, clusters)


def t_interval(of: MeanError, level: float) -> tuple[float, float] | None:
    """M +- t * SE, with the t quantile of G - 1 degrees of freedom; null where SE is."""
    if of.se is None:
        return None
    half = t_quantile(level, of.df) * of.se
    return of.mean - half, of.mean + half


def wilson_interval(of: MeanError, samples: int, level: float) -> tuple[float, float] | None:
    """For scores from 0 to 1: Wilson's interval on an effective number of answers.

    n = `effective_samples`, c the t quantile of G - 1 degrees of freedom:
    (m + c^2 / 2n +- c * sqrt(m (1 - m) / n + c^2 / 4n^2)) / (1 + c^2 / n). It has a width also
    where all answers are right. Null where there are fewer than two clusters.
    """
    if of.se is None:
        return None
    n = effective_samples(of, samples)
    c = t_quantile(level, of.df)
    spread = of.mean * (1 - of.mean) / n + c * c / (4 * n * n)
    middle, half = of.mean + c * c / (2 * n), c * math.sqrt(max(spread, 0.0))
    scale = 1 + c * c / n
    low = 0.0 if of.mean <= 0 else max(0.0, (middle - half) / scale)  # exact, not within a rounding
    return low, 1.0 if of.mean >= 1 else min(1.0, (middle + half) / scale)


def effective_samples(of: MeanError, samples: int) -> float:
    """How many independent answers would have this standard error.

    n = min(m (1 - m) / SE^2, `samples`), where `samples` counts all answers; the number of clusters
    where the mean is 0 or 1.
    """
    if of.mean <= 0 or of.mean >= 1:
        return of.clusters
    if not of.se:
        return samples
    return min(of.mean * (1 - of.mean) / of.se**2, samples)


def bootstrap_interval(
    totals: Sequence[float],
    counts: Sequence[int],
    level: float,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """The percentile interval of the mean over questions, drawing whole clusters.

    `totals`: the sum of the scores of each cluster's questions; `counts`: how many these are. The
    same seed gives the same interval everywhere. Raises `ValueError` for too many clusters.
    """
    size = len(totals)
    if not 0 < size <= MOST_BOOTSTRAPPED:
        raise ValueError(f"a bootstrap takes 1 to {MOST_BOOTSTRAPPED:,} clusters, not {size:,}")
    draw = Random(seed).random  # noqa: S311 - statistics, no secrets
    means = []
    equal = counts[0] if len(set(counts)) == 1 else None
    for _ in range(draws):
        if equal is not None:
            total = sum([totals[int(draw() * size)] for _ in range(size)])
            means.append(total / (equal * size))
        else:
            chosen = [int(draw() * size) for _ in range(size)]
            total = sum([totals[at] for at in chosen])
            means.append(total / sum([counts[at] for at in chosen]))
    means.sort()
    return _at_share(means, (1 - level) / 2), _at_share(means, (1 + level) / 2)


def _at_share(ascending: Sequence[float], share: float) -> float:
    """The quantile, between its two neighbours in proportion."""
    place = share * (len(ascending) - 1)
    below = min(int(place), len(ascending) - 2) if len(ascending) > 1 else 0
    part = place - below
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] * (1 - part) + ascending[above] * part


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Of one question: the chance that at least one of k of its samples is right.

    1 - C(n - c, k) / C(n, k) for n samples of which c are right. Raises `ValueError` for n < k.
    """
    _check_samples(samples, right, k)
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_hat_k(samples: int, right: int, k: int) -> float:
    """Of one question: the chance that all of k of its samples are right.

    C(c, k) / C(n, k) for n samples of which c are right. Raises `ValueError` for n < k.
    """
    _check_samples(samples, right, k)
    return math.comb(right, k) / math.comb(samples, k)


def _check_samples(samples: int, right: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it counts samples, from 1")
    if samples < k:
        raise ValueError(f"{samples} samples are fewer than k = {k}")
    if not 0 <= right <= samples:
        raise ValueError(f"{right} of {samples} samples cannot be right")


def majority(answers: Iterable[tuple[str | None, float]]) -> float:
    """Of one question: the score of its most frequent answer; ties share the credit.

    `answers`: each sample's answer and score. An answer's score is the mean over the samples that
    gave it; to give none (null) is an answer too. Without samples it is 0.
    """
    scores: dict[str | None, list[float]] = defaultdict(list)
    for answer, score in answers:
        scores[answer].append(score)
    most = max(map(len, scores.values()), default=0)
    best = [math.fsum(some) / most for some in scores.values() if len(some) == most]
    return math.fsum(best) / len(best) if best else 0.0


def variance_of(of: MeanError, within: float, inverse_samples: float) -> Variance | None:
    """What more samples could do: the part of the error that is chance within a question.

    `within`: w = mean_i var_k(s_ik); `inverse_samples`: the mean of 1 / K over questions with K
    samples. b = max(0, var(s_i) - w / K), and the error at infinitely many samples is sqrt(b / n);
    with clusters sqrt(max(0, SE^2 - w / (K n))), which is the same without them.
    """
    if of.se is None:
        return None
    chance = within * inverse_samples
    between = max(0.0, of.se**2 * of.questions - chance)
    return Variance(within, between, math.sqrt(between / of.questions))


def mcnemar_p(gained: int, lost: int) -> float:
    """The exact two-sided p that as many answers became right as wrong.

    min(1, 2 * sum_{j <= min(b, c)} C(b + c, j) / 2^(b + c)).
    """
    fewer, all_of = min(gained, lost), gained + lost
    if 2 * fewer >= all_of:
        return 1.0
    if all_of > _MOST_EXACT:
        return 2 * _beta_share(all_of - fewer, fewer + 1, 0.5, 0.5)  # the same sum
    ways = sum(math.comb(all_of, j) for j in range(fewer + 1))
    return min(1.0, float(2 * ways / (1 << all_of)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of m tests, each as if it were the only one.

    In ascending order the i-th (from 0) is multiplied by m - i, and is never below the one before.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, before = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = before
    return adjusted


def correlation(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Pearson's, of pairs; null where one of the two does not vary."""
    n = len(values)
    mean, other_mean = (math.fsum(some) / max(n, 1) for some in (values, others))
    own = math.fsum((one - mean) ** 2 for one in values)
    other = math.fsum((one - other_mean) ** 2 for one in others)
    both = math.fsum(
        (one - mean) * (two - other_mean) for one, two in zip(values, others, strict=True)
    )
    return both / math.sqrt(own * other) if own > 0 and other > 0 else None


def unpaired_p(first: MeanError, second: MeanError) -> tuple[float, float] | None:
    """The standard error and p of a difference as if the questions were not the same.

    SE = sqrt(SE_1^2 + SE_2^2); Welch's t test. Null where there is no error, or it is 0.
    """
    if first.se is None or second.se is None or not first.se + second.se:
        return None
    squares = first.se**2, second.se**2
    se = math.sqrt(sum(squares))
    df = sum(squares) ** 2 / (squares[0] ** 2 / first.df + squares[1] ** 2 / second.df)
    return se, two_sided_p((second.mean - first.mean) / se, df)


def two_sided_p(t: float, df: float) -> float:
    """The chance of a value of Student's t, of `df` degrees of freedom, at least as far from 0.

    I_x(df / 2, 1 / 2) with x = df / (df + t^2), DLMF 8.17.
    """
    square = t * t
    if math.isinf(square):
        return 0.0
    return _beta_share(df / 2, 0.5, df / (df + square), square / (df + square))


def t_quantile(level: float, df: float) -> float:
    """Where `two_sided_p` is 1 - `level`: 12.7 for 0.95 and 1 degree of freedom, 1.96 for many.

    Newton's method from the normal quantile, which lies below: the function is convex, so each
    step goes up and ends below the root too, but for roundings. Raises `ValueError` for a level or
    degrees that cannot be.
    """
    if not 0 < level < 1 or df <= 0:
        raise ValueError(f"no t quantile of level {level} and {df} degrees of freedom")
    beyond = 1 - level
    t = -NormalDist().inv_cdf(beyond / 2)
    for _ in range(_MOST_STEPS):  # a dozen, or some for each factor of 2 at one degree of freedom
        square = t * t
        density = _beta_power(df / 2, 0.5, df / (df + square), square / (df + square)) / t
        step = (two_sided_p(t, df) - beyond) / (2 * density)
        t += step
        if step <= 1e-13 * t:
            break
    return t


def _beta_share(a: float, b: float, x: float, y: float) -> float:
    """The regularised incomplete beta function I_x(a, b), DLMF 8.17.22; y is 1 - x."""
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other side converges
        return 1 - _beta_share(b, a, y, x)
    # 1 + d1 / (1 + d2 / (1 + ...)) by Lentz's method: the ratio of successive numerators times
    # that of successive denominators, until it is 1.
    value = numerators = 1.0
    denominators = 0.0
    for step in range(1, _MOST_STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominators = 1 / ((1 + term * denominators) or _TINY)
        numerators = (1 + term / numerators) or _TINY
        value *= numerators * denominators
        if abs(numerators * denominators - 1) < 4e-16:
            break
    return _beta_power(a, b, x, y) / (a * value)


def _beta_power(a: float, b: float, x: float, y: float) -> float:
    """x^a * y^b / B(a, b), y being 1 - x; Stirling's formula (DLMF 5.11) cancels what is large."""
    from_mode = x * b - y * a
    powers = a * _log_of(x * (a + b) / a, from_mode / a) + b * _log_of(
        y * (a + b) / b, -from_mode / b
    )
    rest = _stirling_rest(a + b) - _stirling_rest(a) - _stirling_rest(b)
    return math.exp(powers + rest) * math.sqrt(a * b / (2 * math.pi * (a + b)))


def _log_of(value: float, above_one: float) -> float:
    """The logarithm of a value that is also known by how much it is above 1."""
    return math.log(value) if above_one < -0.5 else math.log1p(above_one)


def _stirling_rest(z: float) -> float:
    """What Stirling's formula leaves out: ln Gamma(z) - ((z - 1/2) ln z - z + ln(2 pi) / 2)."""
    if z < 15:
        return math.lgamma(z) - ((z - 0.5) * math.log(z) - z + 0.5 * math.log(2 * math.pi))
    inverse = 1 / (z * z)
    series = 1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680)))
    return series / z
