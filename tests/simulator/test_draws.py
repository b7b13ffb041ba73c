from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator import draws

_KEYS = st.binary(min_size=1, max_size=32)


@given(st.integers(), _KEYS, st.integers(min_value=0))
def test_a_draw_lies_between_0_and_1_and_repeats(seed: int, key: bytes, turn: int) -> None:
    share = draws.uniform(seed, key, "fault", turn)
    assert 0 < share <= 1
    assert share == draws.uniform(seed, key, "fault", turn)


def test_seed_body_purpose_and_turn_each_change_the_draw() -> None:
    shares = {
        draws.uniform(0, b"body", "fault", 0),
        draws.uniform(1, b"body", "fault", 0),
        draws.uniform(0, b"other", "fault", 0),
        draws.uniform(0, b"body", "latency", 0),
        draws.uniform(0, b"body", "fault", 1),
    }
    assert len(shares) == 5


def test_draws_are_spread_evenly() -> None:
    shares = [draws.uniform(0, b"body", "fault", turn) for turn in range(5_000)]
    for tenth in range(10):
        assert 400 < sum(tenth <= share * 10 < tenth + 1 for share in shares) < 600


def test_half_of_a_lognormal_lies_below_its_median() -> None:
    assert draws.lognormal(0.5, 3.0, 0.8) == 3.0
    assert draws.lognormal(0.9, 3.0, 0.8) > 6.0
    assert draws.lognormal(0.1, 3.0, 0.0) == 3.0
    assert draws.lognormal(1.0, 3.0, 0.8) < 1_000


def test_a_source_repeats_and_another_purpose_has_another() -> None:
    assert draws.source(0, b"body", "ids").random() == draws.source(0, b"body", "ids").random()
    assert draws.source(0, b"body", "ids").random() != draws.source(0, b"body", "answer").random()
