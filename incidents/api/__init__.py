"""The REST door to incidents: parses, calls one function, shapes the answer."""
