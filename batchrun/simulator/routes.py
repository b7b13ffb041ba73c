"""Which path and method ask for what. Pure."""

from enum import StrEnum

from batchrun.simulator.api_errors import unknown_path, wrong_method

_RESPONSES = "/v1/responses"


class Route(StrEnum):
    """What can be asked for."""

    STATS = "stats"
    MODELS = "models"  # the list, or one by its name
    RESPOND = "respond"
    COUNT = "count"
    LOOK = "look"  # at a background response
    CANCEL = "cancel"


_FIXED = {
    "/stats": ("GET", Route.STATS),
    "/v1/models": ("GET", Route.MODELS),
    _RESPONSES: ("POST", Route.RESPOND),
    f"{_RESPONSES}/input_tokens": ("POST", Route.COUNT),
}


def find_route(method: str, path: str) -> tuple[Route, str]:
    """What is asked for, and the name or id in the path. Raises `ApiError`."""
    path = path.rstrip("/")
    found = _FIXED.get(path)
    name = ""
    if found is None and path.startswith("/v1/models/"):
        found, name = _FIXED["/v1/models"], path.removeprefix("/v1/models/")
    elif found is None and path.startswith(f"{_RESPONSES}/"):
        name, slash, last = path.removeprefix(f"{_RESPONSES}/").partition("/")
        if not slash:
            found = ("GET", Route.LOOK)
        elif last == "cancel":
            found = ("POST", Route.CANCEL)
    if found is None:
        raise unknown_path(method, path)
    if found[0] != method:
        raise wrong_method(method, path)
    return found[1], name
