"""Mistakes that a user can mend: one line that says what, where, and what to do. Shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake outside the program: data, files, weights, environment."""

    exit_code = 1


class ConfigError(UserError):
    """A mistake in a configuration file or in ``--options``."""

    exit_code = 2
