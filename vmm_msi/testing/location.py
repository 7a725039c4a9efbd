"""Find where in a plugin's source a problem is."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.testing.subject import Problem


def located(plugin: object, problem: Problem) -> str:
    """Return a problem as one line: ``FILE:LINE: what is wrong; what to write``."""
    place = raised_at(plugin, problem.cause) or place_of(plugin, problem.hook)
    return " ".join(f"{place}: {problem}".split())


def place_of(plugin: object, attribute: str = "") -> str:
    """Return file and line of a plugin's attribute, else of its class or module.

    An attribute that a class inherits from vmm-msi has no place of its own.
    """
    subject = plugin if isinstance(plugin, (ModuleType, type)) else type(plugin)
    own = getattr(subject, attribute, None) if attribute else None
    for candidate in (own, subject):
        place = _place(candidate, _module_of(subject))
        if place is not None:
            return place
    return getattr(subject, "__qualname__", getattr(subject, "__name__", repr(subject)))


def _module_of(subject: object) -> str | None:
    name = subject.__name__ if isinstance(subject, ModuleType) else subject.__module__
    return getattr(sys.modules.get(name), "__file__", None)


def _place(candidate: object, file: str | None) -> str | None:
    """Return file and line of an object that is in a file."""
    if isinstance(candidate, ModuleType):
        return f"{_short(candidate.__file__)}:1" if candidate.__file__ else None
    if inspect.isfunction(candidate):
        code = inspect.unwrap(candidate).__code__
        return f"{_short(file)}:{code.co_firstlineno}" if code.co_filename == file else None
    if isinstance(candidate, type):
        try:
            return f"{_short(inspect.getfile(candidate))}:{inspect.getsourcelines(candidate)[1]}"
        except (OSError, TypeError):
            return None
    return None


def raised_at(plugin: object, cause: BaseException | None) -> str | None:
    """Return the last place in the plugin's own file from which an exception came."""
    subject = plugin if isinstance(plugin, (ModuleType, type)) else type(plugin)
    file = _module_of(subject)
    trace = None if cause is None else cause.__traceback__
    place = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            place = f"{_short(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _short(file: str | None) -> str:
    """Return a path as the user would write it: relative if it is below the current folder."""
    path = Path(file or "?")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
