"""A backend in the emulated host, used from outside: each call is one request to the agent."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm_msi.iommu.backend import BackendInfo, S2Handle
from vmm_msi.iommu.linux.backend import Doorbells
from vmm_msi.lab.backend import device_roles
from vmm_msi.lab.machine.emulated_host import lab_for
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.lab.rpc.link import AgentLink
from vmm_msi.types import Costs, Iova, ReservedRegion, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.types import GuestDomain, HostTopology, Ipa, PciAddress, Scenario


class RemoteBackend:
    """An :class:`~vmm_msi.iommu.linux.backend.IommufdBackend` at the other end of a link.

    Its methods are those of :class:`~vmm_msi.iommu.backend.Backend`, and the kernel's refusals
    come back as they were raised there.
    """

    def __init__(
        self,
        link: AgentLink,
        host: HostTopology,
        guest: GuestDomain,
        doorbells: Doorbells,
        profile: Profile,
        stand_ins: Mapping[PciAddress, PciAddress],
    ) -> None:
        self._link = link
        self._attached: set[PciAddress] = set()
        facts = link.call(
            "open",
            host=to_wire(host),
            guest=to_wire(guest),
            doorbells=doorbells.value,
            profile=profile.name,
            stand_ins=to_wire(list(stand_ins.items())),
        )
        self._info = from_wire(BackendInfo, facts["info"])
        self._page_size = int(facts["page_size"])

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        return self._link.call(
            "call", method=method, arguments=[to_wire(argument) for argument in arguments]
        )

    @property
    def info(self) -> BackendInfo:
        """What the kernel there offers."""
        return self._info

    @property
    def page_size(self) -> int:
        """PAGE_SIZE of that kernel in bytes."""
        return self._page_size

    def sw_msi_window(self, device: PciAddress) -> ReservedRegion | None:
        """Return the device's software MSI window."""
        found = self._call("sw_msi_window", device)
        return None if found is None else from_wire(ReservedRegion, found)

    def alloc_s2(self, smmu: int, *, msi_cookie: bool = True) -> S2Handle:
        """Allocate a stage 2."""
        return S2Handle(int(self._call("alloc_s2", smmu, msi_cookie)))

    def free_s2(self, s2: S2Handle) -> None:
        """Free it."""
        self._call("free_s2", s2)

    def attach(self, device: PciAddress, s2: S2Handle) -> None:
        """Attach a device."""
        self._call("attach", device, s2)
        self._attached.add(device)

    def detach(self, device: PciAddress) -> None:
        """Detach it."""
        self._call("detach", device)
        self._attached.discard(device)

    def is_attached(self, device: PciAddress) -> bool:
        """Return whether it is attached, as far as this side attached it: no request."""
        return device in self._attached

    def map_doorbell(self, s2: S2Handle, gdb: Ipa, its: int) -> None:
        """Map the page that stands for an ITS's doorbell."""
        self._call("map_doorbell", s2, gdb, its)

    def unmap_doorbell(self, s2: S2Handle, gdb: Ipa) -> None:
        """Unmap it."""
        self._call("unmap_doorbell", s2, gdb)

    def bind_guest_msi(self, device: PciAddress, giova: Iova, gdb: Ipa, size: int) -> None:
        """Register a guest binding."""
        self._call("bind_guest_msi", device, giova, gdb, size)

    def unbind_guest_msi(self, device: PciAddress, giova: Iova) -> None:
        """Withdraw it."""
        self._call("unbind_guest_msi", device, giova)

    def prepare_msi(self, device: PciAddress) -> Iova:
        """Enable the device's MSI where the kernel wants it."""
        return Iova(int(self._call("prepare_msi", device)))

    def program_msi(self, device: PciAddress, doorbell: Iova) -> Iova:
        """Enable the device's MSI at ``doorbell``."""
        return Iova(int(self._call("program_msi", device, doorbell)))

    def advertise_rmr(self, window: ReservedRegion) -> None:
        """Let the guest know of an RMR node."""
        self._call("advertise_rmr", window)

    def withdraw_rmr(self) -> None:
        """Take it back."""
        self._call("withdraw_rmr")

    def deliver(self, device: PciAddress) -> Verdict:
        """Make the device send its MSIs and see where they come out."""
        return from_wire(Verdict, self._call("deliver", device))

    def costs(self) -> Costs:
        """Return what is in use now."""
        return from_wire(Costs, self._call("costs"))

    def snapshot(self) -> Hashable:
        """Return a value that is equal to another snapshot when the states are equal."""
        return str(self._call("snapshot"))

    def close(self) -> None:
        """Close it."""
        self._link.call("close")


@contextmanager
def lab_backends(
    scenario: Scenario, doorbells: Doorbells
) -> Iterator[Callable[[Scenario, Profile], RemoteBackend]]:
    """Yield what opens backends in an emulated host, which is started where none runs.

    :raise UsageError: when the emulated host cannot play the scenario.
    :raise LabError: when it cannot be started.
    """
    device_roles.check(scenario, own_its=doorbells is Doorbells.ITS)
    with lab_for(device_roles.shape_for(scenario)) as lab, AgentLink(lab.agent_socket) as link:
        link.call("hello")
        stand_ins = device_roles.assign(scenario, link.call("devices"))
        yield lambda scenario, profile: RemoteBackend(
            link, scenario.host, scenario.guest, doorbells, profile, stand_ins
        )
