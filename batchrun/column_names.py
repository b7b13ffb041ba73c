"""The names of the columns of `responses`: batchrun's own, and those of carried columns."""

from collections.abc import Collection, Sequence

OWN = (
    *("row", "custom_id", "sample", "variant", "source"),
    *("ok", "status", "truncated", "http_status", "error_kind", "error_code", "error_message"),
    *("incomplete_reason", "response_id", "request_id", "model", "model_requested"),
    *("service_tier", "endpoint", "via", "output_text", "refusal", "reasoning_summary"),
    *("reasoning_text", "api", "endpoint_name", "embedding", "turn_count", "output"),
    *("output_parsed_ok", "citations", "tool_call_count", "input_tokens", "cached_tokens"),
    *("cache_write_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "usage"),
    *("cost_usd", "priced_as", "reported_cost_usd", "attempts", "started_at", "finished_at"),
    *("latency_s", "first_token_s", "request", "request_hash"),
)
_NEW_IN_2 = ("reasoning_text", "api", "endpoint_name", "embedding", "turn_count")


def own_columns(schema_version: int) -> tuple[str, ...]:
    """Those that batchrun itself has in a schema; a carried column never has such a name."""
    return OWN if schema_version > 1 else tuple(name for name in OWN if name not in _NEW_IN_2)


def name_columns(columns: Sequence[str], own: Collection[str] = OWN) -> list[str]:
    """The names in `responses` of carried columns, no two alike without regard to case.

    A name that is one of `own` gets the suffix `_input`.
    """
    taken = set(own)
    names = []
    for column in columns:
        base = f"{column}_input" if column.lower() in own else column or "unnamed"
        name, count = base, 1
        while name.lower() in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name.lower())
        names.append(name)
    return names
