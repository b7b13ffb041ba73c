"""What type a JSON value has, where Python would take a boolean for a number."""

_NAMES = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}


def is_a(value: object, types: tuple[type, ...]) -> bool:
    """The value is of one of the types; a boolean only where `bool` is among them."""
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def render_type(value: object) -> str:
    """`an integer`, `null`, `an array`: as the API's messages call it."""
    if value is None:
        return "null"
    return _NAMES.get(type(value), "an array" if isinstance(value, list) else "an object")
