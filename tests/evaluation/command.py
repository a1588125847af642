"""Running the command line inside a test."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""run("evaluate", ...) -> exit code, standard output, standard error."""
