"""What is run under torture, and against what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A prompt set, its job, and the server's manners."""

    name: str
    rows: int
    concurrency: int
    part_rows: int  # small, so that sealing is frequent
    latency_s: float
    faults: tuple[str, ...] = ()  # options of the simulator
    mode: str = "plain"
    ending: str = ".jsonl"  # of the prompt set
    asks_again: bool = False  # answers are cut at their first limit, and asked for with more


# A twentieth of the attempts meet a fault; none of those that make batchrun send more slowly.
STRUCK = tuple(
    word
    for fault in (
        *("500_json", "500_html", "500_empty", "502_json", "502_html", "502_empty"),
        *("error_200", "reset_before", "reset_within", "truncated_json"),
    )
    for word in ("--fault", f"{fault}=0.005")
)
ALL_FAULTS = ("--faults", "0.05")  # 429 and 503 too: cooldowns, learnt rates

# All answers are longer than 16 tokens and shorter than 64.
_CUT = ("--output-tokens", "42", "--output-spread", "0.1")
SHORT = (
    Shape("plain", 400, 16, 25, 0.03, STRUCK),
    Shape("streamed", 400, 16, 25, 0.03, STRUCK, "stream", ".parquet"),
    Shape("asking again", 200, 16, 25, 0.03, (*STRUCK, *_CUT), asks_again=True),
)
LONG = (
    Shape("plain", 1_500, 16, 40, 0.03, STRUCK),
    Shape("streamed", 1_000, 16, 40, 0.03, STRUCK, "stream", ".parquet"),
    Shape("small", 240, 4, 10, 0.02, STRUCK),
    Shape("limited", 120, 8, 10, 0.03, ALL_FAULTS),
    Shape("large", 4_000, 64, 150, 0.06, STRUCK, "plain", ".jsonl.gz"),
    Shape("smooth", 2_000, 32, 64, 0.05),
    Shape("asking again", 800, 16, 40, 0.03, (*STRUCK, *_CUT), asks_again=True),
)
