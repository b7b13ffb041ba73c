"""What Ray says about a cluster that cannot be joined, in words of use."""

import platform

import pytest

_SET = (  # by the module that imports Ray, for good
    "RAY_USAGE_STATS_ENABLED",
    "RAY_gcs_rpc_server_reconnect_timeout_s",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
)


def test_a_cluster_of_other_versions_is_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray names them in six lines, of which the last alone says nothing."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for name in _SET:
        monkeypatch.setenv(name, "0")
    from ray._private.utils import check_version_info

    from batchrun.executors.ray import _why_not_joined

    cluster = {"ray_version": "2.0.0", "python_version": "3.9.1"}
    with pytest.raises(RuntimeError) as raised:
        check_version_info(cluster, "node 127.0.0.1")
    assert _why_not_joined("head:6379", raised.value) == (
        "the Ray cluster at head:6379 has Ray 2.0.0 and Python 3.9.1, and this machine has "
        f"Ray {ray.__version__} and Python {platform.python_version()}; install the same versions "
        "on all machines of the cluster"
    )
