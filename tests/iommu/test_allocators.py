"""The guest-binding allocator, compared with the list of the patches."""

from __future__ import annotations

import errno

import pytest
from depth import depth
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmm_msi.errors import BackendError
from vmm_msi.iommu.allocators import GuestBindings, MsiCookie, SwMsiSlots
from vmm_msi.iommu.revisions import REVISIONS, revision_numbered
from vmm_msi.iommu.sim.page_table import PageTable
from vmm_msi.types import Granule, Iova, Ipa, Pa, PciAddress

DEVICES = [PciAddress(0, bus, 0, 0) for bus in (1, 2, 3)]
GIOVAS = [0xFFFF_0000, 0xFFFF_1000, 0xFFFE_0040, 0xFFFD_0000]
GDBS = [0x0809_0000, 0x080B_0000, 0x080B_1000, 0x0A09_0000]
HDBS = [0x2_0001_0040, 0x2_0101_0040, 0x2_0201_0040]


class Reference:
    """The list walk of the patches, line by line, without an index."""

    def __init__(self, granule, revision):
        self.granule, self.revision = granule, revision
        self.entries = []  # head first: [giova, gdb, size, hdb, device]
        self.s2 = {}

    def visible(self, device):
        return [e for e in self.entries if self.revision not in {3, 4} or e[4] == device]

    def bind(self, device, giova, gdb, size):
        if self.revision == 15 and size > self.granule:
            return errno.EINVAL
        giova, gdb = giova & ~(size - 1), gdb & ~(size - 1)
        if any(e[0] == giova for e in self.visible(device)):
            return 0
        self.entries.insert(0, [giova, gdb, size, None, device])
        return 0

    def unbind(self, device, giova):
        for entry in self.visible(device):
            if entry[0] == giova & ~(entry[2] - 1):
                if entry[3] is not None:
                    del self.s2[entry[1]]
                self.entries.remove(entry)
                if self.revision not in {4, 7}:
                    return

    def prepare(self, device, hdb):
        page = hdb & ~(self.granule - 1)
        for entry in self.visible(device):
            if entry[3] == page:
                return entry[0]
        for entry in self.visible(device):
            if entry[3] is None:
                if entry[1] & (self.granule - 1):
                    return -errno.EINVAL
                if entry[1] in self.s2:
                    return -errno.EEXIST
                self.s2[entry[1]] = page
                entry[3] = page
                return entry[0]
        return -errno.ENOMEM


class Bindings(RuleBasedStateMachine):
    revision = 2
    granule = Granule.K4

    def __init__(self):
        super().__init__()
        self.table = PageTable(self.granule)
        self.bindings = GuestBindings(self.table, revision_numbered(self.revision))
        self.reference = Reference(self.granule, self.revision)

    @rule(
        device=st.sampled_from(DEVICES),
        giova=st.sampled_from(GIOVAS),
        gdb=st.sampled_from(GDBS),
        size=st.sampled_from([4096, 65536]),
    )
    def bind(self, device, giova, gdb, size):
        try:
            self.bindings.bind(device, Iova(giova), Ipa(gdb), size)
            code = 0
        except BackendError as error:
            code = error.errno
        assert code == self.reference.bind(device, giova, gdb, size)

    @rule(device=st.sampled_from(DEVICES), giova=st.sampled_from(GIOVAS))
    def unbind(self, device, giova):
        self.bindings.unbind(device, Iova(giova))
        self.reference.unbind(device, giova)

    @rule(device=st.sampled_from(DEVICES), hdb=st.sampled_from(HDBS))
    def prepare(self, device, hdb):
        try:
            result = int(self.bindings.prepare(device, Pa(hdb)))
        except BackendError as error:
            result = -error.errno
        assert result == self.reference.prepare(device, hdb)

    @invariant()
    def same_mappings(self):
        assert self.table.pages() == frozenset(self.reference.s2.items())
        assert len(self.bindings) == len(self.reference.entries)


@pytest.mark.parametrize("granule", [Granule.K4, Granule.K64])
@pytest.mark.parametrize("revision", [r.number for r in REVISIONS if r.has_bindings])
def test_allocator_equals_the_list_of_the_patches(revision, granule):
    kind = type("Parametrized", (Bindings,), {"revision": revision, "granule": granule})
    case = kind.TestCase()
    case.settings = settings(max_examples=depth(60), stateful_step_count=30, deadline=None)
    case.runTest()


def test_the_cookie_has_one_page_per_doorbell_in_ascending_order():
    table = PageTable(Granule.K64)
    cookie = MsiCookie(table, 0x0800_0000)
    assert cookie.prepare(Pa(HDBS[0])) == 0x0800_0000
    assert cookie.prepare(Pa(HDBS[1])) == 0x0801_0000
    assert cookie.prepare(Pa(HDBS[0])) == 0x0800_0000
    assert table.pages() == {(0x0800_0000, 0x2_0001_0000), (0x0801_0000, 0x2_0101_0000)}


def test_slots_are_allocated_in_order_of_first_use_up_to_64():
    slots = SwMsiSlots()
    pages = [Pa(0x1_0000_0000 + i * 0x2_0000) for i in range(65)]
    for number, page in enumerate(reversed(pages[:64])):
        assert slots.get(0x0800_0000, page, 4096) == 0x0800_0000 + number * 4096
    assert slots.get(0x0800_0000, pages[63], 4096) == 0x0800_0000
    with pytest.raises(BackendError) as refusal:
        slots.get(0x0800_0000, pages[64], 4096)
    assert refusal.value.errno == errno.EOVERFLOW
