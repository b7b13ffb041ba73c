"""Damaged bytes of a journal segment, copied beside it so that the rest can go on."""

from pathlib import Path

from batchrun.store.disk import replace_file
from batchrun.store.journal import Damage


def damaged_path(segment: Path, damage: Damage) -> Path:
    """Where damaged bytes of a segment are set aside."""
    return segment.with_name(f"damaged-{segment.name}-{damage.offset}")


def set_aside(segment: Path, damage: Damage) -> bool:
    """Whether this is news; the bytes are in a file of their own either way. Raises `OSError`."""
    aside = damaged_path(segment, damage)
    with segment.open("rb") as file:
        file.seek(damage.offset)
        damaged = file.read(damage.size)
    if aside.exists() and aside.read_bytes() == damaged:
        return False
    replace_file(aside, damaged, durable=True)
    return True


def is_set_aside(segment: Path, damage: Damage) -> bool:
    """Whether the next command has nothing to say of it any more."""
    return damaged_path(segment, damage).exists()


def damage_warning(segment: Path, damage: Damage) -> str:
    return (
        f"{segment}: {damage.size} damaged bytes at offset {damage.offset}, set aside in "
        f"{damaged_path(segment, damage).name}; the rows they held are sent again. Check the disk"
    )
