"""Fixtures of other rooms that scenes use."""

from tests.inference.conftest import pair

__all__ = ["pair"]
