"""Hints for a name that is not known: the nearest known one, and which there are."""

from collections.abc import Iterable

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
