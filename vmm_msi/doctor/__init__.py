"""What will happen on a host, said beforehand: facts, rules that look at them, findings.

``case`` is what is looked at, ``finding`` what comes out. Each module named ``rules_...`` has rules
about one thing; ``rules`` has them all, in the order in which findings are shown.
"""
