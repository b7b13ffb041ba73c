"""What the scorers of inspect_ai and lm-evaluation-harness say; runs in an environment with both.

Standard input: JSON, a list of pairs of text and target. Standard output: JSON, the verdicts on
them by the name of the scorer.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, includes, match
from inspect_ai.solver import TaskState
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

# As in lm_eval/tasks/gsm8k/gsm8k.yaml.
_FLEXIBLE = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
_IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]


def by_inspect(scorer: Any, text: str, target: str) -> bool:
    output = ModelOutput.from_content("none", text)
    state: Any = TaskState("none", 0, 0, "", [], output=output)
    score = asyncio.run(scorer(state, Target(target)))
    return bool(score.value == "C")


def by_lm_eval(text: str, target: str, **options: Any) -> bool:
    found = exact_match_hf_evaluate(np.array([text]), np.array([target]), **options)
    return bool(found["exact_match"] == 1)


def flexible(text: str, target: str) -> bool:
    ((found,),) = _FLEXIBLE.apply([[text]], [{}])
    return by_lm_eval(found, target, regexes_to_ignore=_IGNORED, ignore_case=True)


def main() -> None:
    number, contained = match(numeric=True), includes()
    scorers: dict[str, Callable[[str, str], bool]] = {
        "inspect number": lambda text, target: by_inspect(number, text, target),
        "inspect includes": lambda text, target: by_inspect(contained, text, target),
        "lm-eval number": flexible,
        "lm-eval exact": by_lm_eval,
        "lm-eval exact without punctuation": lambda text, target: by_lm_eval(
            text, target, ignore_punctuation=True
        ),
    }
    pairs = json.load(sys.stdin)
    json.dump(
        {name: [score(*pair) for pair in pairs] for name, score in scorers.items()}, sys.stdout
    )


if __name__ == "__main__":
    main()
