"""Text is read within bounds of time and memory, and nothing in it is an error."""

from __future__ import annotations

import re
import time
import tracemalloc

import pytest
from event_lines import raw
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import InputError
from vmm_msi.explain import log_lines, printf
from vmm_msi.explain.explainer import MAX_EXPLAINED, explain
from vmm_msi.explain.known_texts import candidates, forms
from vmm_msi.explain.log_context import LogContext
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Granule, HostTopology, Iova, Its, Pa, PciRoute, Smmu, StreamId

MIB = 1 << 20
SECONDS = 20


def test_a_text_beyond_the_limit_is_refused():
    with pytest.raises(InputError, match=r"reading x: more than 16 MiB; .* tail -c 16M"):
        log_lines.decode(b"a" * (log_lines.MAX_BYTES + 1), "x")


def test_bytes_that_are_not_utf_8_are_replaced():
    text = log_lines.decode(b"\xff\xfe vfio: \x00 IOMMU_VDEVICE_ALLOC failed", "x")
    assert explain(text, LogContext()).lines[0].explanation.id == "qemu-vdevice"


def test_line_ends_and_blank_lines():
    assert [line.number for line in log_lines.lines("a\r\n\n  \nb")] == [1, 4]


def test_terminal_controls_are_removed():
    text = "\x1b[32m[   12.3] \x1b[0m\x1b[31mgroup 7 is not viable\x1b[0m \x1b]0;title\x07 \u202e"
    (line,) = log_lines.lines(text)
    assert line.text == "group 7 is not viable ?]0;title? ?"
    assert explain(text, LogContext()).lines[0].text == line.text


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.key[:30])
def test_backtracking_of_forms_is_bounded(form):
    """A line of many prefixes of known messages, none of them complete."""
    begin = printf._CONVERSION.sub(" ", form.format)[:-2] or "x"
    hostile = [
        form.key * (log_lines.MAX_LINE // len(form.key)),
        (begin + " ") * (log_lines.MAX_LINE // (len(begin) + 1)),
        (form.key + "0x1 a ") * (log_lines.MAX_LINE // (len(form.key) + 6)),
    ]
    started = time.process_time()
    for line in hostile:
        form.pattern.search(line)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "unit",
    [
        "arm-smmu-v3 a: ",
        "arm-smmu-v3 a: event: F_TRANSLATION client: a sid: 0x1 ssid: 0x1 ",
        "smmuv3_propagate_event A ",
        "0x1 0x1 0x1 ",
        "[ ",
        "Nov 25 00:29:56 ",
        "0000:01:00.",
        "\t",
        "vfio 0000:01:00.0: IOMMU_VDEVICE_ALLOC failed ",
        "> ",
        "ab 1 11:11:11 ",
        "{",
        '{"a":',
        '"a" : "',
        "<1>1 a a a a ",
        "&quot;",
        "<br ",
        "\x1b[",
        "\r",
        "a\n",
        "arm-smmu-v3 a:\n",
        "__CURSOR=\nMESSAGE=a\n",
    ],
)
def test_a_mebibyte_takes_seconds_at_most(unit):
    line = (unit * (log_lines.MAX_LINE // len(unit) + 1))[: log_lines.MAX_LINE - 1]
    text = "\n".join([line] * (MIB // log_lines.MAX_LINE))
    started = time.process_time()
    explain(text, LogContext())
    assert time.process_time() - started < SECONDS


def test_all_forms_in_one_long_log():
    """Each line is compared with what is in the text at all: here that is everything."""
    text = "\n".join(form.key for form in forms())
    text += "\nnothing of interest, but a line as long as a line of a kernel's log is" * 10_000
    started = time.process_time()
    assert explain(text, LogContext()).unrecognised >= 10_000
    assert time.process_time() - started < SECONDS


def test_many_different_events_on_a_host_with_many_routes():
    """Lines beyond the limit are not looked up."""
    routes = tuple(PciRoute(n, 0, 0xFF, 0, n << 8, (0,), n << 8) for n in range(10_000))
    host = HostTopology("x", Granule.K4, (Smmu(0),), (Its(0, Pa(0x808_0000)),), routes=routes)
    kind = EventKind.F_TRANSLATION
    events = [SmmuEvent(kind, 1, StreamId(n), Iova(n << 12)) for n in range(10_000)]
    text = "\n".join(line for event in events for line in raw(event))
    started = time.process_time()
    report = explain(text, LogContext(host))
    assert time.process_time() - started < SECONDS
    assert (len(report.lines), report.left_out) == (MAX_EXPLAINED, 10_000 - MAX_EXPLAINED)


def test_memory_does_not_grow_with_repetition():
    event = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x100), Iova(0x800_0040))
    text = "\n".join(raw(event) * 5_000)
    tracemalloc.start()
    (line,) = explain(text, LogContext()).lines
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.count == 5_000
    assert peak < 4 * len(text)


@given(st.text(max_size=300))
def test_any_text(text):
    report = explain(text, LogContext())
    assert report.unrecognised + len(report.lines) <= len(re.findall(r"[\r\n]", text)) + 1


PARTS = st.sampled_from(
    ["arm-smmu-v3 a: ", "event 0x10 received:", "\t", "0x0000000000000010", "event: F_TRANSLATION "]
    + ["client: 0000:01:00.0 ", "sid: 0x1 ", "ssid: 0x0 ", "iova: 0x0 ipa: 0x0", "\n", "x", "s1"]
    + [form.key for form in forms()]
)


@given(st.lists(PARTS, max_size=40))
def test_candidates_are_the_forms_whose_key_is_in_the_text(parts):
    text = "".join(parts)
    assert candidates(text) == [form for form in forms() if form.key in text]


@given(st.lists(PARTS, max_size=40))
def test_any_text_of_parts_of_texts(parts):
    explain("".join(parts), LogContext())
