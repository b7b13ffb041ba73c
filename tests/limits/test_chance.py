import random

import pytest

from batchrun.limits.rate_estimate import RandomRefusals, RefusedShare


def _refuse_by_chance(chance: RandomRefusals, share: float, attempts: int) -> list[bool]:
    """What is said of each refusal, where a share is refused however little is sent.

    A wave has been taken for a limit before.
    """
    chance.is_known(0.0)
    draw = random.Random(3)
    return [
        chance.is_limit(sent, 9.0 / (1 + sent), sent / 50, in_vain=True)
        for sent in range(attempts)
        if draw.random() < share
    ]


def test_one_refusal_among_many_answers_is_chance() -> None:
    chance = RandomRefusals()
    heard = [chance.is_limit(sent, 9.0, sent / 100, in_vain=False) for sent in range(0, 10_000, 80)]
    assert not any(heard)


def test_a_few_close_together_are_chance_and_a_wave_is_remembered() -> None:
    chance = RandomRefusals()
    for first in (100, 1000):
        for sent in (first, first + 1, first + 12):
            assert not chance.is_limit(sent, 9.0, 1.0, in_vain=False)
    wave = [chance.is_limit(2000 + sent, 9.0, 10.0, in_vain=False) for sent in range(0, 20, 2)]
    assert wave == sorted(wave)
    assert any(wave)
    assert chance.is_limit(5000, 9.0, 60.0, in_vain=False)
    assert not chance.is_limit(20_000, 9.0, 2000.0, in_vain=False)


@pytest.mark.parametrize("share", [0.01, 0.03, 0.05])
def test_a_small_share_that_is_refused_by_chance_is_no_wave(share: float) -> None:
    waves, test, draw = 0, RefusedShare(), random.Random(7)
    for sent in range(20_000):
        waves += draw.random() < share and test.is_large(sent)
    assert waves <= 3


@pytest.mark.parametrize(("share", "most"), [(1.0, 6), (0.5, 30), (0.25, 120)])
def test_a_large_share_is_seen_soon(share: float, most: int) -> None:
    for seed in range(20):
        test, draw = RefusedShare(), random.Random(seed)
        seen = (sent for sent in range(1000) if draw.random() < share and test.is_large(sent))
        assert next(seen) <= most


def test_before_there_are_answers_one_refusal_may_be_enough() -> None:
    assert RefusedShare(begins_large=True).is_large(1)
    assert not RefusedShare(begins_large=True).is_large(100)


def test_a_limit_of_one_attempt_at_a_time_is_seen_at_once() -> None:
    chance = RandomRefusals()
    heard = [chance.is_limit(sent, 9.0, 0.1 * sent, in_vain=False) for sent in range(1, 8)]
    assert heard == [False] * 4 + [True] * 3


def test_a_share_that_is_refused_however_little_is_sent_is_chance_after_a_few() -> None:
    chance = RandomRefusals()
    believed = _refuse_by_chance(chance, 0.1, 3_000)
    assert chance.is_usual
    assert sum(believed) < 15
    assert not any(believed[30:])


def test_more_than_the_usual_share_is_a_limit_again() -> None:
    chance = RandomRefusals()
    _refuse_by_chance(chance, 0.05, 2_000)
    assert chance.is_usual
    heard = [
        chance.is_limit(sent, 9.0, 40 + sent / 50, in_vain=False) for sent in range(2_000, 2_060)
    ]
    assert any(heard[:20])
    assert not chance.is_usual


def test_a_usual_share_is_forgotten_when_nothing_is_refused_any_more() -> None:
    chance = RandomRefusals()
    _refuse_by_chance(chance, 0.1, 200)
    assert chance.is_usual
    assert not chance.is_limit(50_000, 9.0, 700.0, in_vain=False)
    assert not chance.is_usual


def test_a_limit_that_is_not_lowered_much_is_never_taken_for_chance() -> None:
    chance = RandomRefusals()
    believed = [chance.is_limit(sent, 9.0, sent / 5, in_vain=True) for sent in range(0, 600, 3)]
    assert all(believed[8:])
    assert not chance.is_usual


def test_few_refusals_that_come_at_ever_less_are_chance_after_three_falls() -> None:
    chance = RandomRefusals()
    chance.is_known(0.0)
    for sent, level in ((95, 10.0), (100, 10.0), (105, 9.0), (140, 7.0), (170, 5.0)):
        chance.is_limit(sent, level, sent / 50, in_vain=True)
        assert not chance.is_usual
    assert not chance.is_limit(220, 4.0, 5.0, in_vain=True)
    assert chance.is_usual


def test_a_search_that_ends_far_above_the_limit_does_not_make_its_refusals_chance() -> None:
    chance = RandomRefusals()
    for sent in (290, 291, 292, 293, 294):
        chance.is_limit(sent, 780.0, 3.4, in_vain=None)
    for sent, level in ((308, 386.0), (319, 229.0), (332, 136.0)):
        assert chance.is_limit(sent, level, 3.5, in_vain=True)
    assert chance.is_limit(780, 122.0, 7.8, in_vain=False)
    for sent, level in ((788, 111.0), (798, 105.0)):
        assert chance.is_limit(sent, level, 8.0, in_vain=True)
    assert not chance.is_usual


def test_refusals_at_even_distances_are_a_limit_after_all_and_not_chance_again_soon() -> None:
    chance = RandomRefusals()
    _refuse_by_chance(chance, 0.1, 400)
    assert chance.is_usual
    heard = [
        chance.is_limit(sent, 9.0, sent / 50, in_vain=None) for sent in range(400, 600, 10)
    ]  # so it is where each refusal stops all until the same number may go again
    assert not any(heard[:9])
    assert any(heard)
    for sent in range(600, 1_200, 10):
        chance.is_limit(sent, 9.0 / sent, sent / 50, in_vain=True)
        assert not chance.is_usual
