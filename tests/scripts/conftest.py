"""Fixtures of other rooms that the tests of scripts use."""

from tests.inference.conftest import pair

__all__ = ["pair"]
