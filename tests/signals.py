"""Start child processes with the default signal dispositions.

A child inherits ignored signals, and a shell's background jobs ignore SIGINT.
"""

#: Prefix of a command line that restores the default action of each signal.
DEFAULT_SIGNALS = ("env", "--default-signal")
