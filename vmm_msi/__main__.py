"""The program: ``vmm-msi`` and ``python -m vmm_msi``.

Nothing is imported before Ctrl-C is handled, since the imports take most of the first 100 ms.
"""

import sys


def main() -> int:
    """Run the command line of this process and return the exit code."""
    try:
        _open_standard_streams()
        from vmm_msi import cli

        code = cli.main()
    except KeyboardInterrupt:
        _ignore_interrupts()
        from vmm_msi import cli

        return cli.interrupted(sys.argv[1:])
    # The result is complete; an interrupt could only disturb the interpreter's exit.
    _ignore_interrupts()
    return code


def _ignore_interrupts() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _open_standard_streams() -> None:
    """Make standard streams safe: no file gets the number of a closed one, no text is refused.

    C libraries print on the numbers 1 and 2, whatever has them. A character that the locale's
    encoding lacks is printed as an escape.
    """
    import io
    import os

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
