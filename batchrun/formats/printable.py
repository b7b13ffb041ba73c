"""What comes from rows, models or servers, made harmless for a terminal. No I/O."""


def printable(text: str) -> str:
    """The text with control characters shown by their codes; line breaks and tabs stay.

    Marks that turn the direction of writing, and what else cannot be seen, are shown so too.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else _code(letter) for letter in text
    )


def one_line(text: str) -> str:
    """The same for a name or a message within a line: line breaks are shown by their codes too."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _code(letter) for letter in text)


def printable_json(text: str) -> str:
    """JSON that means the same and is harmless."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else _json_code(letter) for letter in text
    )


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _json_code(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
