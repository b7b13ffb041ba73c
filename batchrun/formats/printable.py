"""What comes from rows, models or servers, made harmless for a terminal. No I/O.

Control characters are shown by their codes, and so are marks that turn the direction of writing
and what else cannot be seen.
"""

from collections.abc import Callable


def printable(text: str) -> str:
    """Text of several lines: line breaks and tabs stay."""
    return _shown(text, "\n\t", _code)


def one_line(text: str) -> str:
    """A name or a message within a line: line breaks are shown by their codes too."""
    return _shown(text, "", _code)


def printable_json(text: str) -> str:
    """JSON that means the same and is harmless."""
    return _shown(text, "\n", _json_code)


def cut(text: str, most: int) -> str:
    """At most so many characters; where there were more, the last is an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def brief(text: str, most: int) -> str:
    """The text in one line of at most so many characters, white space as single blanks."""
    return cut(one_line(" ".join(text[: 4 * most].split())), most)


def _shown(text: str, harmless: str, code: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in harmless else code(letter) for letter in text
    )


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _json_code(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
