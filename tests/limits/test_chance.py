import random

from batchrun.limits.rate_estimate import RandomRefusals


def _refuse_by_chance(chance: RandomRefusals, share: float, attempts: int) -> list[bool]:
    """What is said of each refusal, where a share is refused however little is sent."""
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


def test_two_close_together_are_believed_and_three_are_remembered() -> None:
    chance = RandomRefusals()
    assert not chance.is_limit(100, 9.0, 1.0, in_vain=False)
    assert chance.is_limit(110, 9.0, 1.1, in_vain=False)
    assert not chance.is_limit(1000, 9.0, 10.0, in_vain=False)
    assert chance.is_limit(1002, 9.0, 10.0, in_vain=False)
    assert chance.is_limit(1004, 9.0, 10.0, in_vain=False)
    assert chance.is_limit(5000, 9.0, 60.0, in_vain=False)
    assert not chance.is_limit(20_000, 9.0, 2000.0, in_vain=False)


def test_a_limit_of_one_attempt_at_a_time_is_seen_at_once() -> None:
    chance = RandomRefusals()
    heard = [chance.is_limit(sent, 9.0, 0.1 * sent, in_vain=False) for sent in range(1, 5)]
    assert heard == [False, True, True, True]


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
    assert not chance.is_limit(50_000, 9.0, 500.0, in_vain=False)
    assert not chance.is_usual


def test_a_limit_that_is_not_lowered_much_is_never_taken_for_chance() -> None:
    chance = RandomRefusals()
    believed = [chance.is_limit(sent, 9.0, sent / 5, in_vain=True) for sent in range(0, 600, 3)]
    assert all(believed[2:])
    assert not chance.is_usual


def test_few_refusals_that_come_at_ever_less_are_chance_after_three_falls() -> None:
    chance = RandomRefusals()
    for sent, level in ((95, 10.0), (100, 10.0), (105, 9.0), (140, 7.0), (170, 5.0)):
        chance.is_limit(sent, level, sent / 50, in_vain=True)
        assert not chance.is_usual
    assert not chance.is_limit(220, 4.0, 5.0, in_vain=True)
    assert chance.is_usual


def test_a_search_that_ends_far_above_the_limit_does_not_make_its_refusals_chance() -> None:
    chance = RandomRefusals()
    for sent in (290, 292, 294):
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
