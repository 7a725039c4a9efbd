"""Read PCI functions, IOMMU groups and SMMUs as the host's kernel lists them."""
