"""Explain the lines of a text."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_msi.errors import InputError
from vmm_msi.explain import in_guest, known_texts, log_lines, not_of_kernel
from vmm_msi.explain.address_kinds import describe_iova
from vmm_msi.explain.event_text import EventText
from vmm_msi.explain.explanation import (
    ExplainedLine,
    ExplainedText,
    Explanation,
    Program,
    Reading,
    Remedy,
    Subject,
)
from vmm_msi.explain.faults import explain_event
from vmm_msi.explain.listing_lines import ListingLines
from vmm_msi.explain.related_findings import OF_TEXT
from vmm_msi.types import PciAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_msi.explain.event_text import Pending
    from vmm_msi.explain.faults import Logged
    from vmm_msi.explain.known_text import Text
    from vmm_msi.explain.log_context import LogContext
    from vmm_msi.explain.log_lines import Line
    from vmm_msi.explain.remedies import StrategyRemedies

#: Different explanations that are kept.
MAX_EXPLAINED = 200
#: Different events and lines that are explained to get there.
_MAX_SEEN = 5 * MAX_EXPLAINED
#: Characters of a line that are shown.
_SHOWN = 300

_SHORT = r"[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_ADDRESS = rf"[0-9a-f]{{4}}:{_SHORT}"
#: Where programs name the device, the most specific pattern first.
_DEVICE = tuple(
    re.compile(pattern)
    for pattern in (
        rf"vfio(?:-pci)? ({_ADDRESS}): ",
        rf"[Dd]evice ({_ADDRESS})\b",
        # QEMU's option may omit the segment.
        rf'"?host"?[:=]"?((?:{_ADDRESS})|(?<==){_SHORT})\b',
        rf"\b({_ADDRESS})\b",
    )
)


def explain(
    text: str,
    context: LogContext,
    strategies: StrategyRemedies | None = None,
    notes: Sequence[str] = (),
) -> ExplainedText:
    """Explain the lines of a text.

    :param strategies: names the strategies that deliver; None to name none.
    :param notes: notes of the caller, which come first.
    """
    events = EventText()
    explained = _ExplainedLines(context, strategies)
    reader = log_lines.LineReader(log_lines.lines(text))
    for line in reader:
        joined = reader.joined(line)
        used = 0 if line.writer else events.line(line, joined)
        if not used:
            used = explained.line(line, joined)
        reader.skip(used)
        for pending in events.take():
            explained.event(pending)
    for pending in events.end():
        explained.event(pending)
    unexamined = () if context.placement is None else context.placement.arguments.unexamined
    notes = [*notes, *(f"not examined: <qemu:commandline> {part}" for part in unexamined)]
    if strategies is not None and strategies.note:
        notes.append(strategies.note)
    return ExplainedText(
        lines=explained.in_order(),
        unrecognised=explained.unrecognised,
        left_out=explained.left_out,
        suppressed=events.suppressed,
        notes=tuple(notes),
    )


class _ExplainedLines:
    """Different explanations, each with its first line and its count.

    An event or a line that was seen is not explained again; beyond a limit, new ones are only
    counted.

    :ivar unrecognised: number of lines that match no known text.
    :ivar left_out: number of lines and events beyond the limit.
    """

    def __init__(self, context: LogContext, strategies: StrategyRemedies | None) -> None:
        self._context = context
        self._strategies = strategies
        self._listing = ListingLines(context)
        self._seen: dict[Logged | str, Explanation] = {}
        self._lines: dict[Explanation, ExplainedLine] = {}
        self.unrecognised = 0
        self.left_out = 0

    def event(self, pending: Pending) -> None:
        """Explain an event."""
        logged = pending.logged
        if logged not in self._seen and not self._is_full():
            self._seen[logged] = explain_event(logged, self._context, self._strategies)
        self._add(pending.line, self._seen.get(logged))

    def line(self, line: Line, joined: str) -> int:
        """Explain a line that does not belong to an event.

        :param joined: the line and those after it that may continue it.
        :return: how many characters of it belong to the message.
        """
        known = self._match(line.text) or self._match_wrapped(line.text, joined)
        if known is None:
            listing = None if line.writer else self._listing.line(line.text)
            self._of_others(line, listing or not_of_kernel.explain_event(joined, line.writer))
            return 0
        text, match = known
        if line.writer and text.program is Program.KERNEL:
            message = f"the kernel's message {text.id}"
            self._of_others(line, not_of_kernel.explain(message, line.writer))
            return 0
        # A wrapped message: all of the lines that it is in.
        end = match.string.find("\n", match.end())
        whole = match.string[: end if end >= 0 else None].replace("\n", " ")
        if whole not in self._seen and not self._is_full():
            self._seen[whole] = _explain_text(text, match, whole, self._context, self._strategies)
        self._add(line, self._seen.get(whole))
        return match.end()

    def _of_others(self, line: Line, explanation: Explanation | None) -> None:
        """Add the explanation of a line that matches no text, or count it as not recognised."""
        if explanation is None:
            self.unrecognised += 1
        elif explanation in self._lines or not self._is_full():
            self._add(line, explanation)
        else:
            self.left_out += 1

    def in_order(self) -> tuple[ExplainedLine, ...]:
        """Return the explanations, in the order of their first lines."""
        return tuple(sorted(self._lines.values(), key=lambda explained: explained.line))

    def _is_full(self) -> bool:
        return len(self._seen) >= _MAX_SEEN or len(self._lines) >= MAX_EXPLAINED

    def _match(self, line: str) -> tuple[Text, re.Match[str]] | None:
        """Return the innermost text of a line: in ``a: b: c``, c is the reason for b and a."""
        innermost = None
        last = -1
        for form in known_texts.candidates(line):
            match = form.pattern.search(line)
            if match is not None:
                # The value that a text ends with may have another text in it.
                end, value = match.end(), match.lastindex
                if value is not None and match.end(value) == end:
                    end = match.start(value)
                if end > last:
                    innermost, last = (form.text, match), end
        return innermost

    def _match_wrapped(self, line: str, joined: str) -> tuple[Text, re.Match[str]] | None:
        """Return the innermost text that starts in a line and ends in one of the next."""
        innermost = None
        last = len(line)
        unwrapped = "" if len(joined) == len(line) else joined.replace("\n", " ")
        for form in known_texts.candidates(unwrapped):
            match = form.pattern.search(joined)
            if match is not None and match.start() < len(line) and match.end() > last:
                innermost, last = (form.text, match), match.end()
        return innermost

    def _add(self, line: Line, explanation: Explanation | None) -> None:
        if explanation is None:
            self.left_out += 1
            return
        known = self._lines.get(explanation)
        if known is None:
            text = " ".join(line.text.split())[:_SHOWN]
            self._lines[explanation] = ExplainedLine(explanation, line.number, text)
            return
        first = min(known.line, line.number)
        self._lines[explanation] = replace(known, line=first, count=known.count + 1)


def _explain_text(
    text: Text,
    match: re.Match[str],
    line: str,
    context: LogContext,
    strategies: StrategyRemedies | None,
) -> Explanation:
    values = [value.strip() for value in match.groups("")]
    rest = line[match.start() :]
    iova = text.iova_in(rest)
    stream = text.stream_in(rest)
    subjects = _named_devices(line, context)
    if stream is not None and not subjects:
        subjects = context.by_stream(stream, "")
    device = subjects[0].address if len(subjects) == 1 else None
    names = {
        "guest": context.guest_name if context.guest is not None else "GUEST",
        "device": str(device or "DEVICE"),
    }
    case = text.case(line, rest, context)
    fixes = [remedy.format(*values, **names) for remedy in case.remedies or text.remedies]
    if context.in_guest:
        fixes = [in_guest.REMEDIES.get(fix, fix) for fix in fixes if "on a host: " not in fix]
    remedies = [Remedy(fix) for fix in fixes]
    if text.strategies and strategies is not None:
        remedies += strategies.remedies(device, ignores_rmr=False)
    iova_is = ""
    if iova is not None:
        iova_is = describe_iova(iova, context.host_device(device), context).text
    return Explanation(
        id=text.id,
        program=text.program,
        what=(case.what or text.what).format(*values, **names),
        devices=subjects,
        stream=stream,
        stage=text.stage,
        iova=iova,
        iova_is=iova_is,
        ipa=case.ipa,
        ipa_is=case.ipa_is,
        missing=text.missing if case.missing is None else case.missing,
        why=case.why,
        remedies=tuple(remedies),
        findings=OF_TEXT.get(text.id, ()) if case.findings is None else case.findings,
        otherwise=() if context.in_guest else _in_guest(text, rest, values, names),
        source=text.source,
    )


def _in_guest(
    text: Text, rest: str, values: list[str], names: dict[str, str]
) -> tuple[Reading, ...]:
    """Return what a line means if it is one of a guest's log, where that differs."""
    case = text.case_in_guest(rest)
    if case is None:
        return ()
    remedies = tuple(remedy.format(*values, **names) for remedy in case.remedies)
    return (Reading("if this is the log of a guest", case.what or case.why, remedies),)


def _named_devices(line: str, context: LogContext) -> tuple[Subject, ...]:
    """Return the device that a line names, if any."""
    for pattern in _DEVICE:
        match = pattern.search(line)
        if match is not None:
            with suppress(InputError):
                address = PciAddress.parse(match[1])
                if context.in_guest:
                    return (context.by_guest_address(address),)
                return (context.subject(address),)
    return ()
