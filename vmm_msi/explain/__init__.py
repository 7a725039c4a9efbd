"""Explanations of log lines: device, address, stage, missing mapping and remedies.

``log_lines`` and ``event_text`` split text into lines and SMMU events. ``known_text`` and the
modules named ``texts_...`` list the known messages. ``faults`` explains an SMMU event on a host and
for a guest, and ``remedies`` lists the strategies that deliver. ``log_context`` looks up
devices of host and guest, and ``explainer`` combines them all.
"""
