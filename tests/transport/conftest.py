from tests.both_transports import transport

__all__ = ["transport"]
