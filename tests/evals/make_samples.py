"""Makes the verdicts beside this file from the originals, which others computed.

    python tests/evals/make_samples.py GSM8K_MODEL_SOLUTIONS.jsonl TAU_BENCH_GPT4O_AIRLINE.json

- gsm8k_verdicts.json: `is_correct` of four methods for 1,319 questions, from
  openai/grade-school-math (example_model_solutions.jsonl), MIT licence.
- tau_bench_rewards.json: the rewards of 50 tasks in four trials, from sierra-research/tau-bench
  (gpt-4o, airline), MIT licence.

Each is text of one digit a verdict, 1 for right, in the order of the original.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

_HERE = Path(__file__).parent
_METHODS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def main(gsm8k: Path, tau_bench: Path) -> None:
    rows = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
    verdicts = {
        method: "".join(str(int(row[method]["is_correct"])) for row in rows) for method in _METHODS
    }
    _write("gsm8k_verdicts", "openai/grade-school-math, MIT licence", verdicts)
    rewards: dict[int, dict[int, str]] = defaultdict(dict)
    for row in json.loads(tau_bench.read_text(encoding="utf-8")):
        rewards[int(row["task_id"])][int(row["trial"])] = str(int(float(row["reward"])))
    tasks = {str(task): "".join(trials[at] for at in range(4)) for task, trials in rewards.items()}
    _write("tau_bench_rewards", "sierra-research/tau-bench, MIT licence", tasks)


def _write(name: str, origin: str, digits: dict[str, str]) -> None:
    text = json.dumps({"origin": origin, "right": digits}, indent=1)
    (_HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
