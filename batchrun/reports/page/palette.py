"""The page's colours, light and dark: those of a chart are far apart for the colour-blind too.

`tests/reports/test_palette.py` measures how far, as seen with each of the three kinds of colour
blindness. No colour is the only sign of anything: legends and tables say the same in words.
"""

# In order of use. The first means that all is well.
LIGHT = (
    *("#07784c", "#2047d1", "#e07900", "#ba2f02"),
    *("#b97f9c", "#318ff8", "#7a1a12", "#8b72b7"),
)
DARK = (
    *("#3cdcb8", "#4f6cfe", "#e3c14c", "#d3706d"),
    *("#ba89ea", "#b3dbff", "#a36488", "#737e18"),
)
COLOURS = tuple(f"var(--c{number})" for number in range(1, len(LIGHT) + 1))
REST = "var(--rest)"  # a grey, for what is not told apart

# How a row ended, in the order of the page.
OUTCOMES = {
    "ok": COLOURS[0],
    "truncated": COLOURS[2],
    "incomplete": COLOURS[1],
    "refused": COLOURS[4],
    "empty_output": COLOURS[5],
    "invalid_output": COLOURS[7],
    "failed": COLOURS[3],
    "no_answer": COLOURS[6],
    "cancelled": REST,
    "invalid": "var(--quiet)",
}


def colour_of(outcome: str) -> str:
    return OUTCOMES.get(outcome, REST)
