"""libvirt XML templates: parsed and filled by node, never by string formatting."""
