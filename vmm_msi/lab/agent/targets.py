"""What the agent runs requests on: a backend, or a machine for call sequences, on its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_msi.iommu import call_sequence, call_sequence_json
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.linux.backend import IommufdBackend
from vmm_msi.iommu.linux.call_machine import LinuxMachine
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.lab.rpc import backend_calls
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.types import GuestDomain, HostTopology, PciAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm_msi.iommu.backend import Backend


class OpenBackend:
    """A backend whose methods requests call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def open(cls, request: Mapping[str, object]) -> OpenBackend:
        """Open an :class:`IommufdBackend`.

        :param request: its arguments.
        :raise ValueError: when the description of host and guest cannot be read.
        :raise VmmMsiError: when it cannot be opened.
        """
        stand_ins = from_wire(list[tuple[PciAddress, PciAddress]], request.get("stand_ins"))
        return cls(
            IommufdBackend(
                from_wire(HostTopology, request.get("host")),
                from_wire(GuestDomain, request.get("guest")),
                Doorbells(str(request.get("doorbells"))),
                profile_named(str(request.get("profile"))),
                dict(stand_ins),
            )
        )

    def facts(self) -> dict[str, object]:
        """Return the properties that do not change while it is open."""
        return {"info": to_wire(self._backend.info), "page_size": self._backend.page_size}

    def call(self, name: str, arguments: object) -> object:
        """Call a method.

        :raise ValueError: when there is no such method, or the arguments do not fit it.
        :raise VmmMsiError: the method's error.
        """
        methods = backend_calls.backend_methods()
        method = methods.get(name)
        if method is None:
            raise ValueError(f"{name!r} is not a method of a backend; valid: {', '.join(methods)}")
        values = backend_calls.arguments_from_wire(method, arguments)
        return backend_calls.result_to_wire(method, getattr(self._backend, name)(**values))

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


def run_sequences(
    request: Mapping[str, object], on_progress: Callable[[int, int], None]
) -> list[list[dict[str, object]]]:
    """Run call sequences on the kernel and return the results of their steps.

    :param request: ``devices``, the addresses of the devices by number; ``scenarios``, the
        sequences; ``expected``, the simulator's results. A sequence ends at the first step with
        another result.
    :param on_progress: called with the number of sequences done and their total.
    :raise ValueError: when they cannot be read.
    """
    documents, expected = request.get("scenarios"), request.get("expected")
    if not isinstance(documents, list) or not isinstance(expected, list):
        raise ValueError("'scenarios' and 'expected' are lists")  # noqa: TRY004
    machine = LinuxMachine(from_wire(list[PciAddress], request.get("devices")))
    try:
        results = []
        for number, (document, right) in enumerate(zip(documents, expected, strict=True), 1):
            steps = call_sequence.run(
                machine,
                call_sequence_json.sequence_from_json(document),
                call_sequence_json.results_from_json(right),
            )
            results.append(call_sequence_json.results_to_json(steps))
            on_progress(number, len(documents))
    finally:
        machine.shut()
    return results
