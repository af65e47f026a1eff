"""The native floor: what must not cost a Python instruction per call."""
