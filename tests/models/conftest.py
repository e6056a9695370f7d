"""Fixtures that tests of models and of weights share."""

from tests.weights.conftest import clip, images

__all__ = ["clip", "images"]
