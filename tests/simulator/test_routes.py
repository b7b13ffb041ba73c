import pytest

from batchrun.simulator.api_errors import ApiError
from batchrun.simulator.routes import Route, find_route


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", "/v1/responses", (Route.RESPOND, "")),
        ("POST", "/v1/responses/", (Route.RESPOND, "")),
        ("POST", "/v1/responses/input_tokens", (Route.COUNT, "")),
        ("GET", "/v1/responses/resp_1", (Route.LOOK, "resp_1")),
        ("POST", "/v1/responses/resp_1/cancel", (Route.CANCEL, "resp_1")),
        ("GET", "/v1/models", (Route.MODELS, "")),
        ("GET", "/v1/models/vendor/b", (Route.MODELS, "vendor/b")),
        ("GET", "/stats", (Route.STATS, "")),
    ],
)
def test_each_path_is_known_by_its_method(method: str, path: str, found: tuple[Route, str]) -> None:
    assert find_route(method, path) == found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses", 405),
        ("DELETE", "/v1/responses/resp_1", 405),
        ("GET", "/v1/responses/resp_1/cancel", 405),
        ("GET", "/v1/responses/resp_1/input_items", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/", 404),
    ],
)
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        find_route(method, path)
    assert caught.value.status == status
