"""The parts of the clouds' SDKs that the program uses, a module a cloud.

A whole SDK has up to 150 MB of Python: mypy reads only what is named here, and not the SDKs' roots (pyproject.toml),
which name all the rest.
"""
