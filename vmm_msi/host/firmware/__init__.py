"""Read firmware tables: ACPI IORT and MADT, flattened device trees."""
