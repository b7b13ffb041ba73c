"""What a run cost, or would cost for more rows, at prices that you give.

    python examples/usage_cost.py RUN --input 2.0 --cached 0.5 --output 8.0 [--rows 1000000]

Prices are dollars for a million tokens. Reasoning is part of the output, cached input part of the
input. Only the answer that counted is seen for each row, not what lost tries may have cost.
"""

import argparse
from pathlib import Path

import duckdb

_BY_MODEL = """
    SELECT
        coalesce(model, model_requested, '(never sent)') AS model,
        count(*) AS "rows",
        count(total_tokens) AS counted,
        coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens,
        coalesce(sum(cached_tokens), 0)::BIGINT AS cached_tokens,
        coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens
    FROM read_parquet($parts) GROUP BY 1 ORDER BY 1
"""


def dollars(
    tokens: tuple[int, int, int], input_usd: float, cached_usd: float, output_usd: float
) -> float:
    """`tokens` are those of input (cached ones among them), cached input and output."""
    fresh = tokens[0] - tokens[1]
    return (fresh * input_usd + tokens[1] * cached_usd + tokens[2] * output_usd) / 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Dollars from the usage columns of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--input", type=float, required=True, metavar="USD")
    parser.add_argument("--cached", type=float, required=True, metavar="USD")
    parser.add_argument("--output", type=float, required=True, metavar="USD")
    parser.add_argument("--rows", type=int, metavar="N", help="scale to a prompt set of N rows")
    options = parser.parse_args()
    if not (options.run / "responses").is_dir():
        parser.error(f"{options.run}/responses does not exist; give the directory of a run")
    parts = {"parts": f"{options.run}/responses/*.parquet"}
    total_rows, total_usd = 0, 0.0
    for model, rows, counted, *tokens in duckdb.execute(_BY_MODEL, parts).fetchall():
        spent, cached, output = tokens
        usd = dollars((spent, cached, output), options.input, options.cached, options.output)
        print(
            f"{model}: {rows:,} rows, {spent:,} in ({cached:,} cached), {output:,} out: ${usd:.6f}"
        )
        if counted < rows:
            print(f"  of {rows - counted:,} rows no usage is known; they are not in the sum")
        total_rows, total_usd = total_rows + counted, total_usd + usd
    print(f"total: ${total_usd:.6f}")
    if options.rows and total_rows:
        print(f"for {options.rows:,} rows like these: ${total_usd / total_rows * options.rows:.2f}")


if __name__ == "__main__":
    main()
