"""Attaching and detaching restores every domain XML that libvirt prints, to the letter.

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
from depth import depth
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

#: Refusals of the editor, by a part of the message.
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
def round_trip(text, layouts=(0, 1, 2)):
    """Attach to one text and detach again; return whether it could be edited.

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
    """Return the texts that libvirt prints of a guest; it refuses to print some."""
    texts = set()
    for flags in FLAGS:
        with contextlib.suppress(libvirt.libvirtError):
            texts.add(domain.XMLDesc(flags))
    return texts


def defined(connection, xml):
    """Return all texts of a guest, off and running; none if libvirt refuses it."""
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


def round_trips(texts, counts):
    """Check each text with one of the layouts, and count the texts that are new."""
    for text in texts:
        before = round_trip.cache_info().currsize
        edited = round_trip(text, (zlib.crc32(text.encode()) % len(LAYOUTS),))
        if round_trip.cache_info().currsize > before:
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
        # The lab's own root has the emulator for aarch64 only.
        if (release, machine.type, machine.arch) != ("12.8", "qemu", "x86_64")
    ),
]
CASES = [
    pytest.param(*place, id="-".join(map(str, place)), marks=[] if place[0] == "here" else LAB)
    for place in PLACES
]


@pytest.mark.parametrize(("release", "machine"), CASES)
def test_round_trip_of_each_piece(release, machine, open_libvirt, counts):
    connection = open_libvirt(release, machine.type)
    texts = [defined(connection, machine.guest(name)) for name in PIECES]
    assert sum(map(bool, texts)) > len(PIECES) * 0.6
    round_trips(set().union(*texts), counts)


@pytest.mark.parametrize(("release", "machine"), CASES)
def test_round_trip_of_all_compatible_pieces(release, machine, open_libvirt, counts):
    connection = open_libvirt(release, machine.type)
    together = []
    for name in PIECES:
        with contextlib.suppress(libvirt.libvirtError):
            connection.defineXML(machine.guest(*together, name))
            together.append(name)
    texts = defined(connection, machine.guest(*together))
    assert len(together) > len(PIECES) * 0.4
    for text in texts:
        round_trip(text)
    round_trips(texts, counts)


@pytest.mark.lab_root
def test_each_piece_is_accepted_by_some_libvirt(open_libvirt):
    left = set(PIECES)
    for release, machine in PLACES:
        connection = open_libvirt(release, machine.type)
        left -= {name for name in left if defined(connection, machine.guest(name))}
    assert left == set()


@settings(max_examples=depth(150), deadline=None, suppress_health_check=[*HealthCheck])
@given(names=st.lists(st.sampled_from(PIECES), max_size=12, unique=True), data=st.data())
def test_round_trip_of_random_pieces(open_libvirt, counts, names, data):
    machine = data.draw(st.sampled_from(TEST_MACHINES))
    round_trips(defined(open_libvirt("here", "test"), machine.guest(*names)), counts)


@pytest.mark.lab_root
@settings(max_examples=depth(60), deadline=None, suppress_health_check=[*HealthCheck])
@given(
    place=st.sampled_from(PLACES), names=st.lists(st.sampled_from(PIECES), max_size=30, unique=True)
)
def test_round_trip_of_random_pieces_on_every_libvirt(open_libvirt, counts, place, names):
    release, machine = place
    round_trips(defined(open_libvirt(release, machine.type), machine.guest(*names)), counts)
