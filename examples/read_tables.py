"""Reads the tables of a run with DuckDB, pandas and Polars; the cells can also run in a notebook.

    python examples/read_tables.py RUN

RUN is a run directory. Outcomes are counted by DuckDB, tokens by pandas, tool calls by Polars.
"""

# %% The run directory; in a notebook, write its name here instead.
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl

run = Path(sys.argv[1] if len(sys.argv) == 2 else "")
if not (run / "responses").is_dir():
    sys.exit("usage: read_tables.py RUN, the directory of a run with answers")

# %% DuckDB: rows by status, with the reason if there is one.
outcomes = duckdb.sql(
    """
    SELECT status, error_kind, count(*) AS "rows", sum(len(attempts)) AS attempts
    FROM read_parquet($parts) GROUP BY ALL ORDER BY ALL
    """,
    params={"parts": f"{run}/responses/*.parquet"},
)
print(f"outcomes (DuckDB)\n{outcomes}")

# %% pandas: tokens by model, in total and for each row.
columns = ["input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"]
responses = pd.read_parquet(run / "responses", columns=["model", *columns])
by_model = responses.groupby("model")[columns]
print(f"tokens (pandas)\n{by_model.sum()}\n\nfor each row:\n{by_model.mean().round(1)}\n")

# %% Polars: the five tools called most, and the share of arguments that fit the tool's schema.
calls = (
    pl.scan_parquet(f"{run}/tool_calls/*.parquet")
    .group_by("name")
    .agg(calls=pl.len(), rows=pl.col("row").n_unique(), valid=pl.col("arguments_valid").mean())
    .sort("calls", "name", descending=[True, False])
    .head(5)
    .collect()
)
with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
    print(f"the tools called most (Polars)\n{calls}")
