"""What the agent works on: a backend, or a machine for steps, on the kernel it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.backend import S2Handle
from vmm_msi.iommu.linux.backend import Doorbells, IommufdBackend
from vmm_msi.iommu.linux.call_machine import LinuxMachine
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.types import GuestDomain, HostTopology, Iova, Ipa, PciAddress, ReservedRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Types of the arguments of each method of a backend that may be called from outside.
METHODS: Mapping[str, tuple[type[Any], ...]] = {
    "sw_msi_window": (PciAddress,),
    "alloc_s2": (int, bool),
    "free_s2": (int,),
    "attach": (PciAddress, int),
    "detach": (PciAddress,),
    "map_doorbell": (int, Ipa, int),
    "unmap_doorbell": (int, Ipa),
    "bind_guest_msi": (PciAddress, Iova, Ipa, int),
    "unbind_guest_msi": (PciAddress, Iova),
    "prepare_msi": (PciAddress,),
    "program_msi": (PciAddress, Iova),
    "advertise_rmr": (ReservedRegion,),
    "withdraw_rmr": (),
    "deliver": (PciAddress,),
    "costs": (),
    "snapshot": (),
}


class Bench:
    """An open backend."""

    def __init__(self, backend: IommufdBackend) -> None:
        self._backend = backend

    @classmethod
    def open(cls, given: Mapping[str, object]) -> Bench:
        """Open a backend as :class:`IommufdBackend` takes it.

        :raise ValueError: when the description of host and guest cannot be read.
        :raise VmmMsiError: when it cannot be opened.
        """
        stand_ins = from_wire(list[tuple[PciAddress, PciAddress]], given.get("stand_ins"))
        return cls(
            IommufdBackend(
                from_wire(HostTopology, given.get("host")),
                from_wire(GuestDomain, given.get("guest")),
                Doorbells(str(given.get("doorbells"))),
                profile_named(str(given.get("profile"))),
                dict(stand_ins),
            )
        )

    def facts(self) -> dict[str, object]:
        """Return what does not change while it is open."""
        return {"info": to_wire(self._backend.info), "page_size": self._backend.page_size}

    def call(self, method: str, arguments: list[object]) -> object:
        """Call a method.

        :raise ValueError: when there is no such method, or the arguments are not its.
        :raise VmmMsiError: what the method raises.
        """
        kinds = METHODS.get(method)
        if kinds is None:
            raise ValueError(f"{method!r} is no method of a backend: {', '.join(METHODS)}")
        values = [from_wire(k, v) for k, v in zip(kinds, arguments, strict=True)]
        if method == "alloc_s2":
            return self._backend.alloc_s2(int(values[0]), msi_cookie=bool(values[1]))
        if method in {"free_s2", "map_doorbell", "unmap_doorbell"}:
            values[0] = self._handle(values[0])
        elif method == "attach":
            values[1] = self._handle(values[1])
        found = getattr(self._backend, method)(*values)
        return hash(found) if method == "snapshot" else to_wire(found)

    def _handle(self, number: int) -> S2Handle:
        if not self._backend.has_s2(S2Handle(number)):
            raise ValueError(f"{number} is no stage 2 of this backend")
        return S2Handle(number)

    def close(self) -> None:
        """Close it."""
        self._backend.close()


def conform(given: Mapping[str, object], tell: Callable[[int, int], None]) -> object:
    """Run scenarios on the kernel and return what each step gave.

    :param given: ``devices``, addresses of the devices by number, ``scenarios``, and ``expected``,
        what the model returned: a scenario ends with the first step that goes another way.
    :raise ValueError: when they cannot be read.
    """
    scenarios, expected = given.get("scenarios"), given.get("expected")
    if not isinstance(scenarios, list) or not isinstance(expected, list):
        raise ValueError("'scenarios' and 'expected' are lists")  # noqa: TRY004
    machine = LinuxMachine(from_wire(list[PciAddress], given.get("devices")))
    try:
        results = []
        for number, (document, right) in enumerate(zip(scenarios, expected, strict=True), 1):
            found = call_sequence.run(
                machine,
                call_sequence_json.scenario_from_json(document),
                call_sequence_json.results_from_json(right),
            )
            results.append(call_sequence_json.results_to_json(found))
            tell(number, len(scenarios))
    finally:
        machine.shut()
    return results
