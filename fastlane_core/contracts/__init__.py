"""What a plugin implements: one abstract base class a file.

`CONTRACTS_VERSION` grows when a method or field is added (second number) or removed (first number).
"""

CONTRACTS_VERSION = (1, 1)
