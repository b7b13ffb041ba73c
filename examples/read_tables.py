"""Reads a run's tables with DuckDB, pandas and Polars.

    python examples/read_tables.py RUN

RUN is a run directory. Outcomes are counted by DuckDB, tokens by pandas, tool calls by Polars.
"""

import argparse
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl


def outcomes(run: Path) -> str:
    """Rows by status, with the reason where there is one."""
    return str(
        duckdb.sql(
            """
            SELECT status, error_kind, count(*) AS "rows", sum(len(attempts)) AS attempts
            FROM read_parquet($parts) GROUP BY ALL ORDER BY ALL
            """,
            params={"parts": f"{run}/responses/*.parquet"},
        )
    )


def tokens(run: Path) -> str:
    """Tokens in all and for a row, by model."""
    columns = ["input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"]
    rows = pd.read_parquet(run / "responses", columns=["model", *columns])
    by_model = rows.groupby("model")[columns]
    return f"{by_model.sum()}\n\nfor each row:\n{by_model.mean().round(1)}"


def tool_calls(run: Path) -> str:
    """Calls by the name of the tool, and the share whose arguments fit its schema."""
    calls = (
        pl.scan_parquet(f"{run}/tool_calls/*.parquet")
        .group_by("name")
        .agg(calls=pl.len(), rows=pl.col("row").n_unique(), valid=pl.col("arguments_valid").mean())
        .sort("calls", "name", descending=[True, False])
        .collect()
    )
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        return str(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads a run's tables.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    run = parser.parse_args().run
    if not (run / "responses").is_dir():
        parser.error(f"{run}/responses does not exist; give the directory of a run with answers")
    print(f"outcomes (DuckDB)\n{outcomes(run)}")
    print(f"tokens (pandas)\n{tokens(run)}\n")
    print(f"tool calls (Polars)\n{tool_calls(run)}")


if __name__ == "__main__":
    main()
