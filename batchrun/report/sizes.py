"""Sizes of files, as people say them."""


def size_in_words(size: int) -> str:
    """`312 kB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.0f} TB"
