"""A real two-node Kubernetes on one Linux machine, for the demo and the end-to-end tests.

``python3 -m dev.cluster up | down | status | images | load``. Only the standard library is used, so it runs before any
virtual environment exists. Read ``__main__`` first, then ``lifecycle``; docs/design/2026-11-23-embedded-cluster.md says
why it is built this way.
"""
