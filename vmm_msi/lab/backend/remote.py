"""A backend in the emulated host, used from outside: each call is one request to the agent."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from vmm_msi.iommu.backend import BackendInfo
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.lab.backend import device_roles
from vmm_msi.lab.machine.emulated_host import lab_for
from vmm_msi.lab.rpc import backend_calls
from vmm_msi.lab.rpc.codec import from_wire, to_wire
from vmm_msi.lab.rpc.link import AgentLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmm_msi.iommu.backend import Backend
    from vmm_msi.iommu.profiles import Profile
    from vmm_msi.iommu.signatures import Method
    from vmm_msi.types import GuestDomain, HostTopology, PciAddress, Scenario


class RemoteBackend:
    """An :class:`~vmm_msi.iommu.linux.backend.IommufdBackend` at the other end of a link.

    It has the methods of :class:`~vmm_msi.iommu.backend.Backend`, and raises the errors that the
    backend at the other end raises.

    :param stand_ins: the emulated host's device to use for each of ``guest``'s devices.
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
        facts = link.call(
            "open",
            host=to_wire(host),
            guest=to_wire(guest),
            doorbells=doorbells.value,
            profile=profile.name,
            stand_ins=to_wire(list(stand_ins.items())),
        )
        #: Name, kernel and capabilities.
        self.info = from_wire(BackendInfo, facts["info"])
        #: PAGE_SIZE of the kernel there in bytes.
        self.page_size = int(facts["page_size"])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function that sends a call of a method of Backend."""
        method = backend_calls.backend_methods().get(name)
        if method is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._call, name, method)

    def _call(self, name: str, method: Method, /, *arguments: object, **named: object) -> Any:  # noqa: ANN401
        values = backend_calls.arguments_to_wire(method, *arguments, **named)
        result = self._link.call("call", method=name, arguments=values)
        return backend_calls.result_from_wire(method, result)

    def close(self) -> None:
        """Close the backend at the other end."""
        self._link.call("close")


@contextmanager
def lab_backends(
    scenarios: Sequence[Scenario], doorbells: Doorbells, kernel: str | None = None
) -> Iterator[Callable[[Scenario, Profile], Backend]]:
    """Yield a function that opens backends in an emulated host; start a host if none runs.

    :param scenarios: those that backends are opened for.
    :param kernel: the host's kernel (:mod:`vmm_msi.lab.build.kernel_flavour`); None for any.
    :raise UsageError: when the emulated host cannot run a scenario.
    :raise LabError: when it cannot be started.
    """
    own_its = doorbells is Doorbells.ITS
    for scenario in scenarios:
        device_roles.check(scenario, own_its=own_its)
    shape = replace(device_roles.shape_for_each(scenarios, own_its=own_its), kernel=kernel)
    with lab_for(shape) as lab, AgentLink(lab.agent_socket) as link:
        link.call("hello")
        its_of = lab.board.its_of
        devices = link.call("devices")

        def open_backend(scenario: Scenario, profile: Profile) -> Backend:
            stand_ins = device_roles.assign(
                scenario, devices, (lambda device: its_of(device).id) if own_its else None
            )
            remote = RemoteBackend(
                link, scenario.host, scenario.guest, doorbells, profile, stand_ins
            )
            # Its methods are those of Backend, by RemoteBackend.__getattr__.
            return cast("Backend", remote)

        yield open_backend
