"""What all tests share."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import waiting
from tests.processes import ForkServer, clean_environment

_CHECKOUT = Path(__file__).parents[1]

# How long an example takes says how busy the machine is; pytest's time limit ends what hangs.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Every process that a test starts runs this checkout, whatever else is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH")))
)


@pytest.fixture(scope="session", autouse=True)
def _no_prices_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have prices in their own configuration."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """What `nohup` or a shell's `&` ignores would be ignored by all processes of the tests too."""
    ignored = [
        number
        for number in (signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:  # a process that is started hears what its parent has a function for
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for a state to come about, while a process runs where one is named."""
    return waiting.wait_until


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Ours, without what would change what batchrun does."""
    return clean_environment()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def batchrun(
    tmp_path: Path, environment: dict[str, str], fork_server: ForkServer
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`batchrun ...` in `tmp_path`, to its end; nothing it may do ends with a traceback."""

    def run(
        *words: object, env: dict[str, str] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return fork_server.run(tmp_path, {**environment, **(env or {})}, *words, text=text)

    return run


@pytest.fixture
def verify(batchrun: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., None]:
    """`batchrun verify` finds nothing wrong with a run."""

    def check(run: object = "run", env: dict[str, str] | None = None) -> None:
        done = batchrun("verify", run, env=env)
        assert done.returncode == 0, done.stdout + done.stderr

    return check


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest as a module begins first, so that no process is left alone with it."""
    items.sort(key=lambda item: "test_ray_runs" not in item.nodeid)
