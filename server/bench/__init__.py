"""Load on a running service, and what it makes of it: `fada bench`.

Loads no model; plots need the ``dev`` extra.
"""
