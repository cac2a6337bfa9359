"""Load on a running service, and what it makes of it: `fada bench`.

Knows the public API only, like any client. Loads no model; plots need the ``dev`` extra.
"""
