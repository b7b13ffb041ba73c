"""The API's own errors: what is wrong with a request, and the body that says so."""

from http import HTTPStatus

import msgspec

from batchrun.simulator.json_types import render_type


class ApiError(Exception):
    """A request that is answered with an error body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = int(status)
        self.type = type_
        self.param = param
        self.code = code

    def render(self) -> bytes:
        return render_error(self.message, type_=self.type, param=self.param, code=self.code)


def render_error(
    message: str, *, type_: str, param: str | None = None, code: str | None = None
) -> bytes:
    """The body of an error, as JSON."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def missing(param: str) -> ApiError:
    return ApiError(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def wrong_type(param: str, expected: str, value: object) -> ApiError:
    return ApiError(
        f"Invalid type for '{param}': expected {expected}, but got {render_type(value)} instead.",
        param=param,
        code="invalid_type",
    )


def wrong_value(param: str, value: object, known: tuple[str, ...]) -> ApiError:
    listed = ", ".join(f"'{word}'" for word in known)
    return ApiError(
        f"Invalid value: '{value}'. Supported values are: {listed}.",
        param=param,
        code="invalid_value",
    )


def unsupported(param: str, message: str, code: str = "unsupported_parameter") -> ApiError:
    return ApiError(message, param=param, code=code)


def refused_key(given: str | None) -> ApiError:
    """401; of the key given no more is shown than its end."""
    if given is None:
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        return ApiError(message, status=HTTPStatus.UNAUTHORIZED)
    shown = "*" * 8 + (given[-4:] if len(given) >= 16 else "")
    return ApiError(
        f"Incorrect API key provided: {shown}.",
        status=HTTPStatus.UNAUTHORIZED,
        code="invalid_api_key",
    )


def unknown_model(model: str) -> ApiError:
    return ApiError(
        f"The model `{model}` does not exist or you do not have access to it.",
        status=HTTPStatus.NOT_FOUND,
        param="model",
        code="model_not_found",
    )


def unknown_response(id_: str) -> ApiError:
    return ApiError(f"Response with id '{id_}' not found.", status=HTTPStatus.NOT_FOUND)


def unknown_path(method: str, path: str) -> ApiError:
    return ApiError(f"Invalid URL ({method} {path})", status=HTTPStatus.NOT_FOUND)


def wrong_method(method: str, path: str) -> ApiError:
    return ApiError(
        f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP "
        "method?)",
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        code="method_not_supported",
    )


def overloaded() -> ApiError:
    return ApiError(
        "The server is currently overloaded with other requests. Please try again later.",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        type_="service_unavailable_error",
        code="server_is_overloaded",
    )


def used_up() -> ApiError:
    return ApiError(
        "You exceeded your current quota, please check your plan and billing details.",
        status=HTTPStatus.TOO_MANY_REQUESTS,
        type_="insufficient_quota",
        code="insufficient_quota",
    )
