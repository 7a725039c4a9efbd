"""Lines that look like the kernel's and that a program wrote: any user may log such a line."""

from __future__ import annotations

from vmm_msi.explain.event_text import begins_like_event
from vmm_msi.explain.explanation import Explanation, Program, Remedy

#: Characters of the text before a message that are shown.
_SHOWN = 60


def explain_event(text: str, writer: str) -> Explanation | None:
    """Explain a line that looks like one about an event; None if it does not.

    :param writer: the program that wrote it; empty if the log does not show it.
    """
    start = begins_like_event(text)
    if start is None or not (start or writer):
        return None
    return explain("an event of an SMMU", writer or _unknown(text[:start]))


def explain(message: str, writer: str) -> Explanation:
    """Explain a line that looks like a message of the kernel.

    :param message: the message that it looks like.
    """
    return Explanation(
        id="not-of-kernel",
        program=Program.OTHER,
        what=f"not a line of the kernel, but of {writer}; it looks like {message}",
        why="every user may log such a line, and some programs quote the kernel's. The kernel's "
        "own lines start with the message, after 'kernel:' or a time",
        remedies=(
            Remedy("use the kernel's own log: journalctl -k | vmm-msi explain"),
            Remedy("if it is a quotation: use the message without the text before it"),
        ),
        source="systemd.journal-fields(7): _TRANSPORT; Linux Documentation/ABI/testing/dev-kmsg",
    )


def _unknown(before: str) -> str:
    return f"text before the message ({' '.join(before.split())[:_SHOWN]})"
