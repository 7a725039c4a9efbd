"""libvirt domain XML to objects and back, by lxml only; decides nothing."""
