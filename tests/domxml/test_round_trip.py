"""Every domain XML that libvirt prints goes through the editor and back, to the letter.

Guests of one piece each, of as many pieces as go together and of pieces drawn at random are defined
on real libvirts; what these print is edited, printed, read again and edited back.
"""

from __future__ import annotations

import contextlib
import functools
import zlib

import libvirt  # noqa: TID251 - XML that only libvirt itself can judge
import pytest
from conftest import SUITES
from domxml.guests import PIECES, QEMU_MACHINES, TEST_MACHINES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_msi.domxml import editor
from vmm_msi.domxml.editor import Assignment
from vmm_msi.domxml.index_gaps import close_gaps
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.support import IommufdForm, XmlLayout
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import GuestPlan, PciAddress, VsmmuPlan

HOSTS = A, B, C = tuple(PciAddress(0xFFF0, bus, 0, 0) for bus in (1, 2, 3))
PLAN = GuestPlan((VsmmuPlan(0, (A,), its=0), VsmmuPlan(1, (B, C), its=1)))
ASSIGNED = {host: Assignment("identity", "qemu") for host in HOSTS}
LAYOUTS = (
    XmlLayout(),
    XmlLayout(pci_bus=False, accel=False, iommufd=IommufdForm.NONE),
    XmlLayout(iommufd=IommufdForm.HOSTDEV, spare_ports=2),
)

#: What the editor says no to, by words of its message.
REFUSALS = (
    "only smmuv3 is compatible with it",
    "without pciBus, which serves the whole machine",
    "has no index or busNr yet",
)

LAB = [pytest.mark.lab_root]

FLAGS = [
    0,
    libvirt.VIR_DOMAIN_XML_INACTIVE,
    libvirt.VIR_DOMAIN_XML_SECURE,
    libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE,
    libvirt.VIR_DOMAIN_XML_MIGRATABLE,
    libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE,
]


@functools.cache
def goes_round(text, layouts=(0, 1, 2)):
    """Edit one text and undo the edit; return whether it could be edited.

    :param layouts: which of ``LAYOUTS``.
    """
    domain = DomainXml.parse(text, "here")
    assert str(domain) == text
    refused = ""
    for number in layouts:
        try:
            new = editor.apply(domain, PLAN, LAYOUTS[number], ASSIGNED)
        except DomainXmlError as error:
            refused = str(error)
            continue
        finally:
            assert str(domain) == text
        written = str(new)
        for now in (new, DomainXml.parse(written, "there")):
            assert str(now) == written
            back = now
            for host in (HOSTS, HOSTS[::-1], (B, A, C))[number]:
                back = close_gaps(editor.remove(back, host))
            assert str(back) == text
    assert not refused or any(words in refused for words in REFUSALS)
    return not refused


def printed(domain):
    """Return what libvirt prints of a guest; some of it it refuses to print."""
    texts = set()
    for flags in FLAGS:
        with contextlib.suppress(libvirt.libvirtError):
            texts.add(domain.XMLDesc(flags))
    return texts


def defined(connection, xml):
    """Return all texts of a guest, those of a running one too; none where libvirt refuses it."""
    try:
        domain = connection.defineXML(xml)
    except libvirt.libvirtError:
        return set()
    qemu = connection.getType() == "QEMU"
    try:
        texts = {xml, *printed(domain)}
        if not qemu:
            with contextlib.suppress(libvirt.libvirtError):
                domain.create()
                texts |= printed(domain)
                domain.destroy()
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM if qemu else 0)
    assert len(texts) > 1
    return texts


def take_round(texts, counts):
    """Take each text round by one of the layouts, and count what was not tried before."""
    for text in texts:
        before = goes_round.cache_info().currsize
        edited = goes_round(text, (zlib.crc32(text.encode()) % len(LAYOUTS),))
        if goes_round.cache_info().currsize > before:
            words = "went through the editor and back" if edited else "were refused by the editor"
            counts[f"distinct domain XMLs {words}"] += 1


@pytest.fixture(autouse=True)
def quiet():
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


@pytest.fixture(scope="module")
def open_libvirt(request):
    """Return a connection to a driver of a release, opened once."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def open_one(release, driver):
            uri = "test:///default"
            if release != "here":
                daemon = request.getfixturevalue("daemon_of")(release)
                uri = daemon.uri if driver == "qemu" else daemon.test_uri
            opened = libvirt.open(uri)
            stack.callback(opened.close)
            return opened

        yield open_one


PLACES = [
    *(("here", machine) for machine in TEST_MACHINES),
    *(
        (release, machine)
        for release in SUITES
        for machine in (*TEST_MACHINES, *QEMU_MACHINES)
        # The lab's own root has no other emulator than that for aarch64.
        if (release, machine.type, machine.arch) != ("12.8", "qemu", "x86_64")
    ),
]
CASES = [
    pytest.param(*place, id="-".join(map(str, place)), marks=[] if place[0] == "here" else LAB)
    for place in PLACES
]


@pytest.mark.parametrize(("release", "machine"), CASES)
def test_each_piece_goes_round(release, machine, open_libvirt, counts):
    connection = open_libvirt(release, machine.type)
    texts = [defined(connection, machine.guest(name)) for name in PIECES]
    assert sum(map(bool, texts)) > len(PIECES) * 0.6
    take_round(set().union(*texts), counts)


@pytest.mark.parametrize(("release", "machine"), CASES)
def test_all_that_go_together_go_round(release, machine, open_libvirt, counts):
    connection = open_libvirt(release, machine.type)
    together = []
    for name in PIECES:
        with contextlib.suppress(libvirt.libvirtError):
            connection.defineXML(machine.guest(*together, name))
            together.append(name)
    texts = defined(connection, machine.guest(*together))
    assert len(together) > len(PIECES) * 0.4
    for text in texts:
        goes_round(text)
    take_round(texts, counts)


@pytest.mark.lab_root
def test_each_piece_is_accepted_by_some_libvirt(open_libvirt):
    left = set(PIECES)
    for release, machine in PLACES:
        connection = open_libvirt(release, machine.type)
        left -= {name for name in left if defined(connection, machine.guest(name))}
    assert left == set()


@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(names=st.lists(st.sampled_from(PIECES), max_size=12, unique=True), data=st.data())
def test_pieces_at_random_go_round(open_libvirt, counts, names, data):
    machine = data.draw(st.sampled_from(TEST_MACHINES))
    take_round(defined(open_libvirt("here", "test"), machine.guest(*names)), counts)


@pytest.mark.lab_root
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    place=st.sampled_from(PLACES), names=st.lists(st.sampled_from(PIECES), max_size=30, unique=True)
)
def test_pieces_at_random_go_round_on_every_libvirt(open_libvirt, counts, place, names):
    release, machine = place
    take_round(defined(open_libvirt(release, machine.type), machine.guest(*names)), counts)
