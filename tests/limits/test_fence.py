"""A worker whose driver was silent for too long sends nothing more, whatever it hears then."""

from batchrun.limits.sharing.fence import Fence
from batchrun.limits.verdicts import GO, Wait
from batchrun.records import Need, Scope

_NEED = Need(Scope("http://localhost/v1", "none", "m"))


def test_it_is_open_while_the_driver_speaks_and_never_again_after_a_silence() -> None:
    now_s = 100.0
    fence = Fence(30.0, lambda: now_s)
    for _ in range(5):
        now_s += 29.0
        assert fence.verdict(_NEED, 0.0) is GO
        assert fence.hear()
    now_s += 30.5  # nobody has asked meanwhile, as of a process that was stopped
    assert not fence.hear()
    assert fence.is_silent
    assert fence.verdict(_NEED, 0.0) == Wait()
    now_s += 0.1
    assert not fence.hear()
    assert fence.verdict(_NEED, 0.0) == Wait()
