"""What the worker costs and what it is worth, beside other servers on the same machine.

``python -m benchmarks`` from the root of a checkout; benchmarks/README.md says how it is measured.
"""
