"""How alike two texts are, from 0 to 1 (`similarity`), by rapidfuzz."""

from collections.abc import Callable, Sequence
from typing import Literal

from batchrun.scoring.score import MissingLibrary, Score

Measure = Literal["ratio", "token_sort", "jaro_winkler"]


def measure_of(name: Measure) -> Callable[[str, str], float]:
    """The function, from 0 to 1. Raises `MissingLibrary`.

    `ratio`: twice the length of what both have in common as a subsequence, over the sum of their
    lengths. `token_sort`: the same of their words in sorted order. `jaro_winkler`: Jaro's measure,
    raised where up to four first letters are the same.
    """
    try:
        from rapidfuzz import distance, fuzz  # noqa: PLC0415 - in an extra
    except ImportError:
        raise MissingLibrary(
            "the scorer `similarity` needs rapidfuzz: pip install 'batchrun[eval]'"
        ) from None
    if name == "jaro_winkler":
        likeness: Callable[[str, str], float] = distance.JaroWinkler.similarity
        return likeness
    ratio = fuzz.ratio if name == "ratio" else fuzz.token_sort_ratio
    return lambda one, other: ratio(one, other) / 100


def similarity(text: str, targets: Sequence[str], measure: Callable[[str, str], float]) -> Score:
    """The likeness to that of the targets which is most alike. Ends' white space never counts."""
    answer = text.strip()
    value = max(measure(answer, target.strip()) for target in targets)
    return Score(value, answer, None if value == 1 else "different")
