# SPDX-License-Identifier: GPL-2.0-or-later
# The devices of the emulated host (docs/lab-internals.md); QEMU is configured without any other.

# The board, its expander buses and root ports.
CONFIG_ARM_VIRT=y
CONFIG_PXB=y
CONFIG_PCIE_PORT=y

# The agent's channel, the folders of a host with guests.
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_9P=y

# Devices to assign.
CONFIG_EDU=y
CONFIG_NVME_PCI=y
CONFIG_E1000E_PCI_EXPRESS=y
CONFIG_IGB_PCI_EXPRESS=y

# Their sources refer to these without depending on them: hw/nvme to SPDM, expander buses to CXL.
CONFIG_SPDM_SOCKET=y
CONFIG_CXL=y
CONFIG_CXL_MEM_DEVICE=y
