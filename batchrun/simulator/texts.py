"""Made-up text: answers of a wished length, and strings that fit the text keywords of a schema."""

from random import Random
from typing import Any

from batchrun.simulator import patterns

BYTES_A_TOKEN = 4
_LONGEST = 100_000  # letters of a string, whatever a schema asks for
_WORDS = (
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "island",
    "jasmine",
    "kernel",
    "lantern",
    "meadow",
    "nickel",
    "orchid",
    "pepper",
    "quartz",
    "river",
    "saffron",
    "timber",
    "umbra",
    "valley",
    "willow",
    "xenon",
    "yarrow",
    "zephyr",
)
_SENTENCES = (
    "The first figure follows from the second once both are written in the same unit.",
    "Nothing in the question rules this out, and two of its details speak for it.",
    "Taken step by step: 12 and 30 make 42, and a third of that is 14.",
    "A shorter way would be to count what is missing instead of what is there.",
    "In practice most people would round here, and the result would hardly change.",
    "That is why the order matters: what is heavy goes in last.",
    "Seen from the other side, the same rule gives the same answer.",
    "It helps to draw a line under what is known before asking for more.",
    "The café on the corner opens at seven, which settles the question of breakfast.",
    "One could object that the sample is small; the trend is clear all the same.",
    "先把已知的数量写下来,再看还缺什么。",
    "Each of the three parts can be checked without the other two.",
    "Half of it is habit, and the other half is patience 🙂.",
    'The word "about" carries more weight in this sentence than it seems to.',
    "If the price falls by 20%, the number sold has to grow by 25% to make up for it.",
    "So the answer holds, with the proviso that the doors stay open.\n\nNow to the second point.",
)
_THOUGHTS = (
    "Weighing what the question asks for against what it gives.",
    "Looking for the step that everything else depends on.",
    "Checking the result against a rough estimate.",
    "Considering whether a simpler reading was meant.",
)
_SORRIES = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "Sorry, this is something I'm not able to do.",
)
_DAY = r"20[0-3]\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"  # that every year has
_FORMATS = {
    "date-time": _DAY + r"T1\d:[0-5]\d:[0-5]\dZ",
    "date": _DAY,
    "time": r"1\d:[0-5]\d:[0-5]\dZ",
    "duration": r"P[1-9]DT[1-9]H",
    "email": r"[a-z]{4,9}@example\.(com|org)",
    "hostname": r"[a-z]{4,9}\.example\.com",
    "ipv4": r"10\.[1-9]\d\.1\d\d\.[1-9]",
    "ipv6": r"fd00:[1-9a-f]{4}::[1-9a-f]",
    "uri": r"https://example\.com/[a-z]{3,8}",
    "uri-reference": r"/[a-z]{3,8}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def token_count(text: str) -> int:
    """Tokens as this server counts them: four bytes each, begun ones counted."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


def cut(text: str, tokens: int) -> str:
    """The beginning of the text, of so many tokens at most."""
    return text.encode()[: max(tokens, 0) * BYTES_A_TOKEN].decode(errors="ignore")


def prose(opening: str, tokens: float, rng: Random) -> str:
    """Sentences after an opening, of about so many tokens."""
    wished = tokens * BYTES_A_TOKEN - len(opening)
    count = max(int(wished / 75), 0)  # what a sentence takes, on average
    return " ".join((opening, *rng.choices(_SENTENCES, k=count)))


def thought(rng: Random) -> str:
    return rng.choice(_THOUGHTS)


def refusal(rng: Random) -> str:
    return rng.choice(_SORRIES)


def word(rng: Random) -> str:
    return rng.choice(_WORDS)


def words(rng: Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(1, 3)))


def text(schema: dict[str, Any], rng: Random) -> str:
    """A string that fits pattern, format and lengths."""
    least, most = min(schema.get("minLength", 0), _LONGEST), schema.get("maxLength")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        for _ in range(50):
            made = patterns.matching(pattern, rng)
            if made is None:
                break
            if len(made) >= least and (most is None or len(made) <= most):
                return made
        default = schema.get("default")
        if isinstance(default, str) and patterns.is_match(pattern, default):
            return default
    if schema.get("format") in _FORMATS:
        made = patterns.matching(_FORMATS[schema["format"]], rng)
        if made is not None:
            return made
    made = words(rng)
    if len(made) < least:
        made = (made + " ") * (least // len(made) + 1)
        made = made[:least]
    return made if most is None else made[:most]
