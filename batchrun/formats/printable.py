"""Text in messages: foreign text made harmless, and hints for names that are not known.

Control characters are shown by their codes, and so are marks that turn the direction of writing
and what else cannot be seen.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence

_AS_IS = "\n\t"  # in text of several lines


def printable(text: str) -> str:
    """Text of several lines: line breaks and tabs stay."""
    return _shown(text, _AS_IS, _code)


def shell_command(command: str) -> str:
    r"""A command, as `shlex.join` writes it, that means the same to a shell and is harmless.

    What cannot be seen is written as bash, zsh and ksh read it: `$'\x1b'`.
    """
    if printable(command) == command:
        return command
    return " ".join(map(_shell_word, shlex.split(command)))


def _shell_word(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_shown(escaped, _AS_IS, _shell_code)}'"


def _shell_code(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def one_line(text: str) -> str:
    """A name or a message within a line: line breaks are shown by their codes too."""
    return _shown(text, "", _code)


def printable_json(text: str) -> str:
    """JSON that means the same and is harmless."""
    return _shown(text, "\n", _json_code)


def toml_name(name: str) -> str:
    """In quotes, as TOML has it, and harmless."""
    return printable_json(json.dumps(name, ensure_ascii=False))


def pricing_tables(models: Sequence[str]) -> str:
    """`[pricing."a"], [pricing."b"] and 3 more`: the tables that give these models a price."""
    return _first([f"[pricing.{toml_name(model)}]" for model in models[:MOST_NAMED]], len(models))


def ascii_json(text: str) -> str:
    """JSON that means the same in ASCII alone."""
    return "".join(letter if letter.isascii() else _json_code(letter) for letter in text)


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


MOST_NAMED = 5  # names one by one, where there may be many


def named(names: Sequence[str]) -> str:
    """`a, b, c, d, e and 3 more`: the first names, harmless, and how many there are besides."""
    return _first([one_line(name) for name in names[:MOST_NAMED]], len(names))


def _first(names: Sequence[str], of: int) -> str:
    more = of - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


_SHOWN = 30  # names


def listed(names: Iterable[str]) -> str:
    """The names with commas between them, as far as a message has space for them."""
    all_names = list(names)
    return ", ".join(all_names[:_SHOWN]) + (", …" if len(all_names) > _SHOWN else "")


def nearest(word: str, known: Iterable[str], kind: str = "known") -> str:
    """The end of a message: the known name that was probably meant, and which there are."""
    import difflib  # noqa: PLC0415 - only where something is wrong

    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    there = f"{kind} are {listed(names)}" if names else "there are none"
    return f"did you mean `{near[0]}`? ({there})" if near else there
