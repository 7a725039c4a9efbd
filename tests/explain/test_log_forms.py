"""Logs as people have them: of every program that prints them, quoted, wrapped, in any encoding.

An event must have the same explanation in all of them, and a line that a program wrote is never
explained as the kernel's.
"""

from __future__ import annotations

import json
import subprocess
import textwrap

import pytest
from event_lines import decoded, raw
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.explain import log_lines, log_prefixes
from vmm_msi.explain.explainer import explain
from vmm_msi.explain.log_context import LogContext
from vmm_msi.iommu.smmu_events import EventKind, SmmuEvent
from vmm_msi.types import Iova, PciAddress, StreamId

A = PciAddress.parse("0000:01:00.0")
FAULT = SmmuEvent(EventKind.F_TRANSLATION, 1, StreamId(0x180), Iova(0x800_0040))
WORDS, DECODED = raw(FAULT), decoded(FAULT, A)
EVENT = WORDS + DECODED
DMESG = "[  812.113402] "
SYSLOG = "Nov 25 00:29:56 host.example.com kernel: "


def prefixed(prefix, lines=EVENT):
    return "\n".join(f"{prefix}{line}" for line in lines)


def check(text, *, count=1, client=True):
    """Check that a text is one event, or ``count`` times the same, and nothing else."""
    if isinstance(text, bytes):
        text = log_lines.decode(text, "x")
    report = explain(text, LogContext())
    assert report.unrecognised == 0
    (line,) = report.lines
    explanation = line.explanation
    assert (explanation.id, explanation.stage, line.count) == ("smmu-F_TRANSLATION", 1, count)
    assert (explanation.stream, explanation.iova) == (0x180, 0x800_0040)
    assert [subject.address for subject in explanation.devices] == ([A] if client else [])


# --- words, whose tab was lost ------------------------------------------------------------------


@pytest.mark.parametrize(
    "tab", ["\t", " ", "", "        ", "#011", "\\x09", "^I", "&#9;", "&nbsp;"]
)
def test_every_notation_of_a_tab(tab):
    check(prefixed(DMESG, WORDS).replace("\t", tab), client=False)
    check(prefixed(DMESG).replace("\t", tab))


@pytest.mark.parametrize("form", ["0x{:016x}", "0X{:016X}", "0x{:016X}", "{:016x}", "{:016X}"])
def test_every_notation_of_a_word(form):
    words = [f"{line[:-18]}{form.format(int(line[-18:], 16))}" for line in WORDS[1:]]
    check(prefixed(DMESG, [WORDS[0], *words]), client=False)
    one_line = " ".join([WORDS[0], *(word.split()[-1] for word in words)])
    check(prefixed(DMESG, [one_line]), client=False)
    two_lines = [WORDS[0], " ".join([words[0], *(word.split()[-1] for word in words[1:])])]
    check(prefixed(DMESG, two_lines), client=False)
    check("\n".join(word.split()[-1] for word in words), client=False)


def test_all_lines_in_one():
    for prefix in (DMESG, SYSLOG):
        check(prefix + f" {prefix}".join(EVENT))


# --- wrapped and quoted -------------------------------------------------------------------------


def wrapped(prefix, width, lines=EVENT, quote=""):
    return "\n".join(
        f"{quote}{piece}"
        for line in lines
        for piece in textwrap.wrap(
            prefix + line.replace("\t", ""),
            width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


@pytest.mark.parametrize("quote", ["", "> ", ">> ", "> > ", "    "])
@pytest.mark.parametrize("width", [60, 66, 72, 76, 78, 80])
def test_lines_that_a_mailer_wrapped(width, quote):
    for prefix in (DMESG, SYSLOG, ""):
        check(wrapped(prefix, width, quote=quote))
        check(wrapped(prefix, width, DECODED, quote))


@pytest.mark.parametrize("width", [80, 100, 120, 132])
def test_lines_that_a_terminal_broke(width):
    """Within words, without a trace."""
    for prefix in (
        DMESG,
        SYSLOG,
        "Nov 25 00:29:56 a-host-with-a-long-name kernel: [  812.113402] ",
    ):
        lines = [f"{prefix}{line}".replace("\t", " ") for line in EVENT]
        pieces = [line[i : i + width] for line in lines for i in range(0, len(line), width)]
        check("\n".join(pieces))


def test_a_quoted_line_whose_rest_lost_its_mark():
    check(
        "\n".join(f"> {part}" for part in wrapped(DMESG, 72).split("\n")).replace(
            "\n> 0000", "\n0000"
        )
    )


def test_a_message_that_is_no_event_may_be_wrapped():
    text = (
        "> [  812.003211] vfio-pci 0000:01:00.0: Firmware has requested this device have\n"
        "> a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1\n"
        "> mapping. Contact your platform vendor.\n"
        "> something else\n"
    )
    report = explain(text, LogContext())
    (line,) = report.lines
    assert (line.explanation.id, line.line, report.unrecognised) == (
        "direct-mapping-required", 1, 1,
    )  # fmt: skip
    assert [subject.address for subject in line.explanation.devices] == [A]


def test_the_line_after_an_event_does_not_belong_to_it():
    report = explain("\n".join([DMESG + DECODED[0], "error: group 7 is not viable"]), LogContext())
    assert [line.explanation.id for line in report.lines] == [
        "smmu-F_TRANSLATION",
        "qemu-group-viable",
    ]


def test_a_cut_off_line_has_no_address():
    """The address of a translation fault is never taken to be 0."""
    report = explain(DMESG + DECODED[0].split(" iova:")[0], LogContext())
    (line,) = report.lines
    assert (line.explanation.id, line.explanation.iova) == ("smmu-F_TRANSLATION", None)


# --- prefixes -----------------------------------------------------------------------------------

KERNEL = [
    "> " + DMESG,
    "| " + DMESG,
    "* " + DMESG,
    "JD> " + DMESG,
    "&gt; " + DMESG,
    "`" + DMESG,
    "kern.log:" + DMESG,
    "123:" + DMESG,
    "login: " + DMESG,
    "node1: " + DMESG,
    "/var/log/kern.log:Nov 25 00:29:56 host kernel: ",
    "Wed 2026-11-25 00:29:56 UTC host kernel: ",
    "2026-11-25T00:29:56+0100 host kernel: ",
    "2026-11-25T00:29:56.123456+01:00 host kernel: ",
    "Nov 25 00:29:56.123456 host kernel: ",
    "Nov 25 2026 00:29:56 host kernel: ",
    "nov. 25 00:29:56 host kernel: ",
    "Nov 25 00:29:56 kernel: ",
    "Nov 25 00:29:56 host kern.err kernel: ",
    "<3>Nov 25 00:29:56 host kernel: ",
    "<3>1 2026-11-25T00:29:56.123456+00:00 host kernel - - - ",
    "<3>",
    "1764030596.113402 host kernel: ",
    "[  812.113402] host kernel: ",
    "[  812.113402 <    0.000009>] host kernel: ",
    "[  812.113402 <    0.000009>] ",
    "[<    0.000009>] ",
    "[  +0.000009] ",
    "[Nov25 00:29] ",
    "2026-11-25T00:29:56,123456+00:00 ",
    "2026-11-25T00:29:56.123456Z " + DMESG,
    "Nov 25 00:29:56 " + DMESG,
    "kernel: ",
    "3,812,12345678,-;",
    "kern  :err   : " + DMESG,
    "\x1b[32m[  812.113402] \x1b[0m\x1b[33m",
    "[32m[  812.113402] [0m[33m",
    "#033[32m[  812.113402] #033[0m",
]


@pytest.mark.parametrize("prefix", KERNEL)
def test_prefixes_of_the_kernels_lines(prefix):
    check(prefixed(prefix))
    check(prefixed(prefix, DECODED))


PROGRAMS = {
    "Nov 25 00:29:56 host evil[12]: ": "evil[12]",
    "Nov 25 00:29:56 host evil: ": "evil",
    "Nov 25 00:29:56 host kernel[12]: ": "kernel[12]",
    "2026-11-25T00:29:56.123456+00:00 host evil[12]: " + DMESG: "evil[12]",
    "/var/log/syslog:Nov 25 00:29:56 host evil[12]: ": "evil[12]",
    "[  812.113402] host evil[12]: ": "evil[12]",
    "[  812.113402] evil[12]: ": "evil[12]",
    "evil[12]: ": "evil[12]",
    "[  812.113402] evil: ": "evil:",
    "Nov 25 00:29:56 host kernel: evil: ": "evil:",
    "evil: ": "evil:",
    "<11>" + DMESG: "a program (facility user)",
    "<14>Nov 25 00:29:56 host kernel: ": "a program (facility user)",
    "<11>1 2026-11-25T00:29:56.123456+00:00 host kernel - - - ": "a program (facility user)",
    "<11>1 2026-11-25T00:29:56.123456+00:00 host evil 12 - - ": "evil[12]",
    "Nov 25 00:29:56 host user.err kernel: ": "a program (facility user)",
    "user  :err   : " + DMESG: "a program (facility user)",
    "11,812,12345678,-;": "a program (facility user)",
    "187,812,12345678,-;": "a program (facility 23)",
}


@pytest.mark.parametrize("prefix", PROGRAMS)
def test_a_line_of_a_program_is_not_explained_as_the_kernels(prefix):
    report = explain(prefixed(prefix), LogContext())
    (line,) = report.lines
    assert (line.explanation.id, line.count) == ("not-of-kernel", len(EVENT))
    writer = PROGRAMS[prefix]
    shown = f"text before the message ({writer})" if writer == "evil:" else writer
    assert line.explanation.what == (
        f"not a line of the kernel, but of {shown}; it looks like an event of an SMMU"
    )
    assert report.unrecognised == 0


def test_further_lines_of_a_program_are_its_own():
    """journalctl indents them, and a program chooses their text."""
    head = "Nov 25 00:29:56 host evil[12]: "
    text = f"{head}hello\n" + prefixed(" " * len(head))
    for log in (text, text.replace("hello", ""), f"{head.strip()}\n{EVENT[0]}"):
        assert {line.explanation.id for line in explain(log, LogContext()).lines} == {
            "not-of-kernel"
        }
    check(f"{text}\n\n{prefixed(DMESG)}".split("\n\n")[1])


def test_messages_of_the_kernel_are_those_of_its_own_lines():
    message = "ITS: No ITS available, not enabling LPIs"
    for prefix, id_ in ((SYSLOG, "its-absent"), (next(iter(PROGRAMS)), "not-of-kernel")):
        (line,) = explain(prefix + message, LogContext()).lines
        assert line.explanation.id == id_


# --- records of journald and others --------------------------------------------------------------


def record(message, **fields):
    """Return what journald records for a message of the kernel, or of another source."""
    return {
        "__CURSOR": "s=1;i=2",
        "__REALTIME_TIMESTAMP": "1764030596113402",
        "MESSAGE": message,
        "PRIORITY": "3",
        "_TRANSPORT": "kernel",
        "SYSLOG_FACILITY": "0",
        "SYSLOG_IDENTIFIER": "kernel",
        "_HOSTNAME": "host",
        **fields,
    }


def pretty(document, separators=(",", " : ")):
    return json.dumps(document, indent="\t", separators=separators)


def as_fields(document, indentation=""):
    return "".join(f"{indentation}{name}={value}\n" for name, value in document.items())


def verbose(document):
    head = f"Wed 2026-11-25 00:29:56.123456 UTC [{document['__CURSOR']}]\n"
    return head + as_fields(dict(list(document.items())[2:]), "    ")


FORMS = {
    "json": lambda documents: "\n".join(map(json.dumps, documents)),
    "json-seq": lambda documents: "".join(f"\x1e{json.dumps(d)}\n" for d in documents),
    "json-sse": lambda documents: "".join(f"data: {json.dumps(d)}\n\n" for d in documents),
    "json-pretty": lambda documents: "\n".join(map(pretty, documents)),
    "jq": lambda documents: "\n".join(json.dumps(d, indent=2, sort_keys=True) for d in documents),
    "export": lambda documents: "\n".join(map(as_fields, documents)),
    "verbose": lambda documents: "".join(map(verbose, documents)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, -1])
def test_records_of_journald(form, order):
    def text(**fields):
        documents = [record(line, **fields) for line in EVENT]
        return FORMS[form](
            [dict(list(d.items())[::order]) if form != "export" else d for d in documents]
        )

    if form == "verbose" and order == -1:
        return
    check(text())
    others = {
        "evil[12]": {"_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": "evil", "_PID": "12"},
        "kernel[12]": {"_TRANSPORT": "stdout", "_PID": "12"},
        "a program (transport journal)": {"_TRANSPORT": "journal"},
        "evil": {"SYSLOG_FACILITY": "1", "SYSLOG_IDENTIFIER": "evil"},
    }
    for writer, fields in others.items():
        (line,) = explain(text(**fields), LogContext()).lines
        assert (line.explanation.id, line.count) == ("not-of-kernel", len(EVENT))
        assert line.explanation.what.startswith(f"not a line of the kernel, but of {writer}; ")


def test_a_message_in_bytes():
    """journald writes a message that is not printable as an array of numbers."""
    check("\n".join(json.dumps(record([*line.encode()])) for line in EVENT))


def test_a_message_of_several_lines():
    check(json.dumps(record("\n".join(EVENT))))


def test_records_of_dmesg_and_of_containers():
    dmesg = pretty(
        {"dmesg": [{"pri": 3, "time": 812.1, "msg": line} for line in EVENT]}, (",", ": ")
    )
    report = explain(dmesg, LogContext())
    assert [line.explanation.id for line in report.lines] == ["smmu-F_TRANSLATION"]
    (line,) = explain(dmesg.replace('"pri": 3', '"pri": 11'), LogContext()).lines
    assert line.explanation.id == "not-of-kernel"
    check("\n".join(json.dumps({"log": f"{DMESG}{line}\n", "stream": "stdout"}) for line in EVENT))


def test_a_broken_record_is_a_line():
    line = json.dumps(record("something else"))[:-1]
    assert explain(line, LogContext()).unrecognised == 1
    assert explain('{"a": ' * 5000, LogContext()).unrecognised == 1
    assert explain('{"MESSAGE": 1e999}\n{"MESSAGE": null}\n{}\n[]', LogContext()).lines == ()


def test_environment_variables_of_qemus_log_are_no_record():
    log = "LC_ALL=C \\\nPATH=/usr/bin \\\nMESSAGE=x\nvfio: IOMMU_VDEVICE_ALLOC failed"
    report = explain(log, LogContext())
    assert (report.unrecognised, report.lines[0].line) == (3, 4)


# --- encodings and line ends ---------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding):
    check(prefixed(DMESG).encode(encoding))
    check(b"\xfe\xff" + prefixed(DMESG).encode("utf-16-be"))


@pytest.mark.parametrize("end", ["\r\n", "\r\r\n", "\r", "\n", "<br>\n", "<br/>\r\n"])
def test_line_ends(end):
    check(prefixed(DMESG).replace("\n", end))


def test_text_of_a_web_page():
    check(prefixed(DMESG).replace('"', "&quot;").replace(">", "&gt;"))
    check(f"<pre><code>{prefixed(DMESG)}</code></pre>")


# --- any text -----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(DMESG, SYSLOG, *KERNEL, *PROGRAMS),
        *EVENT,
        *(word for line in EVENT for word in line.split()),
        *("\n", "\r", "> ", " ", "\t", "{", "}", "&#10;", "<br>", "\ufeff", "[", "]", "\x1e"),
        *('"MESSAGE" : "', '",', "MESSAGE=", "__CURSOR=x\n", json.dumps(record(EVENT[5]))),
        "Wed 2026-11-25 00:29:56.123456 UTC [s=1]\n",
    ]
)


@given(st.lists(PIECES, max_size=30))
def test_any_text_of_parts_of_logs(pieces):
    text = "".join(pieces)
    numbers = [line.number for line in log_lines.lines(text)]
    assert sorted(numbers) == numbers or "{" in text or "MESSAGE=" in text
    explain(text, LogContext())


@given(st.text(max_size=80), st.sampled_from([*PROGRAMS][:6]))
def test_no_text_of_a_program_is_an_event(text, prefix):
    """Whatever a program logs in one line."""
    for line in ("".join(text.split()), f"{text} {EVENT[5]}", f"{EVENT[0]} {text}"):
        logged = prefix + " ".join(line.split())
        ids = {line.explanation.id for line in explain(logged, LogContext()).lines}
        assert ids <= {"not-of-kernel"}


@given(st.text(alphabet="0123456789:[]<>. TZ,;-+\n|abkernel", max_size=300))
def test_prefixes_are_removed_in_linear_time(line):
    log_prefixes.parse(line)


# --- a real dmesg -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["-x"],
        ["-r"],
        ["-t"],
        ["-t", "-x"],
        ["-T"],
        ["-d"],
        ["-e"],
        ["-H", "--nopager"],
        ["--color=always"],
        ["--color=always", "-x"],
        ["--time-format=iso"],
        ["--time-format=delta"],
        ["--time-format=ctime"],
    ],
    ids=" ".join,
)
def test_every_format_of_dmesg(options, tmp_path):
    log = tmp_path / "log"
    log.write_text(prefixed("<3>[  812.113402] ") + "\n", encoding="utf-8")
    dmesg = subprocess.run(
        ["dmesg", "-F", str(log), *options], capture_output=True, check=True, timeout=60
    )
    check(dmesg.stdout)
