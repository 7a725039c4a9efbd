"""A start for child processes that are sent signals, whatever the tests were started from.

A child inherits which signals are ignored, and a background job of a shell ignores SIGINT.
"""

#: Words before those of a command; it becomes the command, with the default action of each signal.
DEFAULT_SIGNALS = ("env", "--default-signal")
