"""Mathematical expressions compared by what they mean (`math`), by math-verify.

Slow (milliseconds) and able to hang: to be called in a process of its own, with a time limit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from batchrun.formats.json_text import shown
from batchrun.scoring.score import BadTarget, MissingLibrary, Score

Verify = Callable[[str, Sequence[str]], Score]


def math_verifier() -> Verify:
    """The scorer. Raises `MissingLibrary`.

    1 where the last expression that the text states (boxed, between dollars, after "answer is", or
    a number) means the same as one of the targets: `1/2` and `0.5`, `2x+1` and `1+2x`, sets, ...
    """
    try:
        from math_verify import parse, verify  # noqa: PLC0415 - in an extra
    except ImportError:
        raise MissingLibrary(
            "the scorer `math` needs math-verify: pip install 'batchrun[math]'"
        ) from None

    def read(text: str) -> list[Any]:
        # Its own time limits are signals; ours end the process.
        found: list[Any] = parse(text, parsing_timeout=None)
        return found

    def expressions(target: str) -> list[Any]:
        found = read(target) or read(f"${target}$")
        if not found:
            raise BadTarget(f"the target is not a mathematical expression: {shown(target, 80)}")
        return found

    def score(text: str, targets: Sequence[str]) -> Score:
        wanted = [expressions(target) for target in targets]
        given = read(text)
        if not given:
            return Score(0.0, None, "no_expression")
        answer = str(given[-1])
        if any(verify(one, given, timeout_seconds=None) for one in wanted):
            return Score(1.0, answer)
        return Score(0.0, answer, "different")

    return score
