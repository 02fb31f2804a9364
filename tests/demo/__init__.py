"""A week of a small shop's faults at stand-in platforms, so that anybody can look at the product without an account.

`make demo` runs it beside the product, in a data directory of its own. It is made of the same parts as the tests.
"""
