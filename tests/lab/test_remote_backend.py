"""A backend used from outside: every method of the protocol reaches it, by its annotations."""

from __future__ import annotations

import inspect
import json

import pytest
from scenarios import A, pair

from vmm_msi.errors import BackendError
from vmm_msi.host.scenario import load_scenario
from vmm_msi.iommu.backend import Backend, MsiAllocator
from vmm_msi.iommu.linux.abilities import Doorbells
from vmm_msi.iommu.linux.backend import IommufdBackend
from vmm_msi.iommu.profiles import profile_named
from vmm_msi.iommu.sim import SimBackend
from vmm_msi.lab.agent.targets import OpenBackend
from vmm_msi.lab.backend.remote import RemoteBackend
from vmm_msi.lab.rpc.backend_calls import backend_methods
from vmm_msi.types import SW_MSI_WINDOW, Iova, Ipa, Outcome, PciAddress

DEVICE = PciAddress.parse(A)
PROFILE = profile_named("series-v15")


class LocalLink:
    """A link to an agent in this process; requests and answers are JSON texts."""

    def __init__(self, backend):
        self.backend = backend
        self.target = OpenBackend(backend)
        self.called = []

    def call(self, verb, /, **arguments):
        arguments = json.loads(json.dumps(arguments))
        match verb:
            case "open":
                answer = self.target.facts()
            case "call":
                self.called.append(arguments["method"])
                answer = self.target.call(arguments["method"], arguments["arguments"])
            case "close":
                answer = self.target.close()
        return json.loads(json.dumps(answer))


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(pair("own").toml())
    return load_scenario(path)


@pytest.fixture
def link(scenario):
    return LocalLink(SimBackend(scenario.host, scenario.guest, PROFILE))


@pytest.fixture
def remote(scenario, link):
    return RemoteBackend(link, scenario.host, scenario.guest, Doorbells.WITNESS, PROFILE, {})


def test_every_method_of_a_backend_can_be_called():
    """All but ``close``, which is a verb of the agent and a method of the remote backend."""
    methods = {name for name, member in vars(Backend).items() if inspect.isfunction(member)}
    public = {name for name in methods if name[0] != "_"}
    assert backend_methods().keys() == public - {"close"}
    for backend in (SimBackend, IommufdBackend):
        for name in public:
            assert inspect.signature(getattr(backend, name)) == inspect.signature(
                getattr(Backend, name)
            )


def test_each_method_reaches_the_backend_with_its_own_types(remote, link, scenario):
    local = SimBackend(scenario.host, scenario.guest, PROFILE)
    assert (remote.info, remote.page_size) == (local.info, local.page_size)
    before = remote.snapshot()
    window = remote.sw_msi_window(DEVICE)
    assert window == SW_MSI_WINDOW
    s2 = remote.alloc_s2(0, allocator=MsiAllocator.V15)
    assert not remote.is_attached(DEVICE)
    remote.advertise_rmr(window)
    attached_to = remote.attach(DEVICE, s2)
    assert attached_to != s2
    assert remote.is_attached(DEVICE)
    remote.bind_guest_msi(DEVICE, Iova(0xFFFF_F000), Ipa(0x0809_0000), 4096)
    assert remote.costs().bindings == 1
    programmed = remote.prepare_msi(DEVICE)
    assert (programmed, type(programmed)) == (0xFFFF_F040, Iova)
    verdict = remote.deliver(DEVICE)
    assert verdict.outcome is Outcome.DELIVERED
    assert verdict == link.backend.deliver(DEVICE)
    assert remote.snapshot() != before
    remote.unbind_guest_msi(DEVICE, Iova(0xFFFF_F000))
    remote.map_doorbell(attached_to, Ipa(0x0A09_0000), 0)
    assert remote.program_msi(DEVICE, Iova(0xFFFF_F000)) == 0xFFFF_F040
    remote.unmap_doorbell(attached_to, Ipa(0x0A09_0000))
    remote.withdraw_rmr()
    remote.detach(DEVICE)
    remote.free_s2(s2)
    assert remote.snapshot() == before
    remote.close()
    never = {"move_sw_msi_window", "preset_msi"}
    assert set(link.called) == backend_methods().keys() - never


@pytest.mark.parametrize("window", [SW_MSI_WINDOW, None])
def test_calls_that_the_kernel_lacks(window, remote):
    with pytest.raises(BackendError, match=r"^EOPNOTSUPP: .* has no IOMMU_OPTION_SW_MSI_START"):
        remote.move_sw_msi_window(DEVICE, window)
    with pytest.raises(BackendError, match=r"^EINVAL: .* has no VFIO_IRQ_SET_ACTION_PREPARE"):
        remote.preset_msi(DEVICE, None if window is None else Iova(0xFFFF_F000))


def test_a_default_is_sent(remote, link):
    remote.attach(DEVICE, remote.alloc_s2(0))
    assert link.backend.costs().s2_domains == 1
    with pytest.raises(TypeError):
        remote.alloc_s2(0, True)


def test_a_refusal_is_that_of_the_backend(remote):
    with pytest.raises(BackendError, match="EINVAL"):
        remote.detach(DEVICE)


@pytest.mark.parametrize("name", ["close", "info", "_kernel", "bind"])
def test_other_names_are_not_called(name, remote, link):
    with pytest.raises(ValueError, match="valid: sw_msi_window, "):
        link.target.call(name, {})
    if name not in {"close", "info"}:
        with pytest.raises(AttributeError, match=name):
            getattr(remote, name)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("detach", {}),
        ("detach", [A]),
        ("detach", {"device": A, "more": 1}),
        ("detach", {"device": 7}),
        ("alloc_s2", {"smmu": 0}),
        ("alloc_s2", {"smmu": "0", "allocator": "kernel"}),
        ("alloc_s2", {"smmu": 0, "allocator": "v9"}),
        ("bind_guest_msi", {"device": A, "giova": "0x0", "gdb": 0, "size": 0}),
        ("advertise_rmr", {"window": 3}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, arguments, link):
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's wording
        link.target.call(name, arguments)
