"""Modules that register parts of one's own: those under `imports`, and those of installed packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from bita.errors import ConfigError, one_line

GROUP = "bita.plugins"
"""Entry points of installed packages, each a module that registers parts when it is imported."""


class ModuleError(ConfigError):
    """A module that a run names cannot be imported."""


def import_modules(modules: Iterable[str], wrong: Callable[[str], ConfigError]) -> None:
    """Import modules, which may lie in the current folder.

    Args:
        modules: their names.
        wrong: makes the error of what is wrong.

    Raises:
        ConfigError: one cannot be imported; it is named.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise wrong(f"{module} cannot be imported ({one_line(error)})") from error


@cache
def load_plugins() -> None:
    """Import the modules that installed packages name in their entry points, once.

    Raises:
        ConfigError: one cannot be imported; it and its package are named.
    """
    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()
        except (Exception, SystemExit) as error:
            package = plugin.dist.name if plugin.dist is not None else "?"
            raise ConfigError(
                f"plugin {plugin.name} of the package {package}: {plugin.value} cannot be imported "
                f"({one_line(error)}); mend or uninstall the package"
            ) from error
