"""The version, said once."""

VERSION = "0.2.0"
