"""The colours of a chart can be told apart, also with each kind of colour blindness."""

from itertools import combinations

import numpy as np
import pytest

from batchrun.reports.page.palette import DARK, LIGHT, OUTCOMES

# What is seen of linear RGB, by Machado, Oliveira and Fernandes (2009), severity 1.
_SEEN = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
_TO_XYZ = np.array(
    [[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]
)
_APART = 20  # of CIE 1976: about nine of the least differences that an eye sees
_CONTRAST = 3  # that WCAG asks of the parts of a graphic


def _linear(colour: str) -> np.ndarray:
    code = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = _TO_XYZ @ np.clip(linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def _contrast(one: str, other: str) -> float:
    low, high = sorted(float(_TO_XYZ[1] @ _linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("eyes", _SEEN)
@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_each_two_colours_are_far_apart_for_all_eyes(colours: tuple[str, ...], eyes: str) -> None:
    seen = {colour: _lab(_SEEN[eyes] @ _linear(colour)) for colour in colours}
    for one, other in combinations(colours, 2):
        apart = float(np.linalg.norm(seen[one] - seen[other]))
        assert apart >= _APART, f"{one} and {other}: {apart:.1f}"


@pytest.mark.parametrize(("colours", "cards"), [(LIGHT, "#f7f7f5"), (DARK, "#1e2125")])
def test_each_colour_stands_out_from_what_is_behind_it(
    colours: tuple[str, ...], cards: str
) -> None:
    assert min(_contrast(colour, cards) for colour in colours) > _CONTRAST - 0.3


def test_no_two_ends_of_a_row_have_the_same_colour() -> None:
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)
