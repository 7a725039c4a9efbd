"""Checks of a host and its guests before they start: facts, rules, findings.

``case`` has the facts that the rules read, ``finding`` the results. Each module named ``rules_...``
has the rules about one subject; ``rules`` lists all of them in the order of their findings.
"""
