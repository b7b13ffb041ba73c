"""Our scorers beside those of inspect_ai and lm-evaluation-harness; `make test-oracles` runs it."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from batchrun.scoring.numbers import number
from batchrun.scoring.score import BadTarget, Score, target_texts
from batchrun.scoring.text_match import exact, includes, normaliser
from tests.waiting import HANG_S

pytestmark = pytest.mark.oracles

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".oracles" / "bin" / "python"
# Outputs that others have scored: openai/grade-school-math at 3101c7d5, MIT.
GSM8K = ROOT.parent / "shared" / "data" / "evals" / "gsm8k_model_solutions.jsonl"
METHODS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def ask_others(pairs: Sequence[tuple[str, str]]) -> dict[str, list[bool]]:
    """Verdicts on pairs of text and target, by the name of the scorer."""
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("other_scorers.py")],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    verdicts: dict[str, list[bool]] = json.loads(done.stdout)
    return verdicts


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared data is not here")
def test_all_three_agree_on_gsm8k() -> None:
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    pairs, right = [], []
    for method in METHODS:
        for row in rows:
            target = row["ground_truth"].rpartition("A:")[2].strip()
            pairs.append((row[method]["solution"], target))
            right.append(row[method]["is_correct"])
    others = ask_others(pairs)
    ours = [number(text, (target,)).value == 1 for text, target in pairs]
    assert sum(right) == 286 + 515 + 458 + 742
    assert ours == right
    assert others["inspect number"] == right
    assert others["lm-eval number"] == right


_plain = normaliser(ignore_punctuation=True)
OURS: dict[str, Callable[[str, str], Score]] = {
    "number": lambda text, target: number(text, (target,)),
    "includes": lambda text, target: includes(text, (target,)),
    "exact without punctuation": lambda text, target: exact(text, (target,), _plain),
}
# Scorer, text and target: the scorer says that it is right.
ERRORS = (
    ("inspect number", "It is 123457", "123456"),  # rounded to five digits
    ("inspect number", "It is 9007199254740993", "9007199254740992"),
    ("inspect includes", "It is 25", "5"),
    ("inspect includes", "It is 150", "15"),
    ("inspect includes", "It is -5", "5"),
    ("lm-eval number", "It is 60%", "60"),
    ("lm-eval number", "It is 1.5e3", "3"),
    ("lm-eval exact without punctuation", "3.14", "314"),
    ("lm-eval exact without punctuation", "-5", "5"),
)


def test_their_errors_are_not_ours() -> None:
    others = ask_others([(text, target) for _, text, target in ERRORS])
    for at, (scorer, text, target) in enumerate(ERRORS):
        assert others[scorer][at], f"{scorer} errs no more on {text!r}: take it out"
        assert OURS[scorer.partition(" ")[2]](text, target).value == 0, (scorer, text)


def test_an_empty_target_matches_nothing() -> None:
    others = ask_others([("whatever", "")])
    assert others["inspect includes"] == [True]
    with pytest.raises(BadTarget):
        target_texts("")
