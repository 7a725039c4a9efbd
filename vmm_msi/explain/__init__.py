"""What a line of a log means: which device, which address, which stage, what is missing.

``reading`` takes text apart, ``tables`` and the modules named ``texts_...`` know what is written
where, ``faults`` says what an event of an SMMU means on a host and for a guest, ``mends`` which
strategies would do. ``explain`` puts it together.
"""
