import pytest

from tests.pacing.random_servers import draw_case, measure

SERVERS = 200
_PARTS = 20  # so that the processes share them
_ALL_PARTS = [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, _PARTS))]
_QUICK_S = 3.0  # of an answer


@pytest.mark.parametrize("part", _ALL_PARTS)
def test_a_run_fills_what_a_server_allows_and_wastes_little_on_refusals(part: int) -> None:
    measured = 0
    for seed in range(part, SERVERS, _PARTS):
        case = draw_case(seed)
        result = measure(case)
        assert result.goodput >= 0.95, (seed, result, case.plan)
        assert result.refused < 0.02, (seed, result, case.plan)
        measured += result.measured_s > 0
    assert measured >= 8  # of ten; the others change too late, or answer too slowly


@pytest.mark.parametrize("part", _ALL_PARTS)
def test_who_refuses_passes_for_no_queue(part: int) -> None:
    """With auto; where answers take long, it takes longer than is measured here to find out."""
    for seed in range(part, SERVERS, _PARTS):
        case = draw_case(seed)
        if case.plan.latency_s > _QUICK_S:
            continue
        result = measure(case, adapts=True)
        assert result.goodput >= 0.95, (seed, result, case.plan)
        assert result.refused < 0.02, (seed, result, case.plan)


def test_the_same_seed_gives_the_same_run() -> None:
    assert measure(draw_case(3)) == measure(draw_case(3))
