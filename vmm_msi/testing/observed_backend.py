"""Watch what a strategy asks of a backend, and refuse one call."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from vmm_msi.errors import BackendError
from vmm_msi.iommu.backend import Backend, Capability
from vmm_msi.iommu.signatures import methods_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vmm_msi.iommu.backend import BackendInfo

#: The error number of a call that is refused on request: no kernel refuses any of them with it.
INJECTED = errno.EIO

#: The methods that change something; with None as this parameter they undo.
_CHANGES: dict[str, str | None] = {
    "advertise_rmr": None,
    "alloc_s2": None,
    "attach": None,
    "bind_guest_msi": None,
    "map_doorbell": None,
    "move_sw_msi_window": "window",
    "prepare_msi": None,
    "preset_msi": "giova",
    "program_msi": None,
}
_METHODS = methods_of(Backend)


@dataclass(frozen=True, slots=True)
class BackendCall:
    """A call that changes something.

    :param error: the backend's refusal.
    """

    method: str
    arguments: Mapping[str, Any]
    error: BackendError | None = None


class ObservedBackend:
    """A backend that records the calls of another one which change something.

    It has the methods of :class:`~vmm_msi.iommu.backend.Backend`.

    :param fail_at: refuse this call, counted from 1, with :data:`INJECTED`; 0 for none.
    :param capabilities: the only capabilities that a strategy sees; None for all.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        fail_at: int = 0,
        capabilities: Collection[Capability] | None = None,
    ) -> None:
        self._backend = backend
        self._fail_at = fail_at
        self._capabilities = capabilities
        self.calls: list[BackendCall] = []

    @property
    def info(self) -> BackendInfo:
        """Name, kernel and the capabilities that a strategy sees."""
        info = self._backend.info
        if self._capabilities is None:
            return info
        return replace(info, capabilities=info.capabilities.intersection(self._capabilities))

    @property
    def page_size(self) -> int:
        """PAGE_SIZE of the host kernel in bytes."""
        return self._backend.page_size

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        method = getattr(self._backend, name)
        return partial(self._call, name, method) if name in _CHANGES else method

    def _call(self, name: str, method: Any, /, *arguments: object, **named: object) -> Any:  # noqa: ANN401
        values = _METHODS[name].bind(*arguments, **named)
        undoes_if_none = _CHANGES[name]
        if undoes_if_none is not None and values[undoes_if_none] is None:
            return method(*arguments, **named)
        is_refused = len(self.calls) + 1 == self._fail_at
        refused = BackendError(INJECTED, f"{name}: refused by the conformance suite")
        try:
            result = _refuse(refused) if is_refused else method(*arguments, **named)
        except BackendError as error:
            self.calls.append(BackendCall(name, values, error))
            raise
        self.calls.append(BackendCall(name, values))
        return result


def _refuse(error: BackendError) -> NoReturn:
    raise error
