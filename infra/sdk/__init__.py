"""The parts of the clouds' SDKs that the program uses, one module per cloud.

A whole SDK has up to 150 MB of Python. mypy reads only the modules named here: pyproject.toml excludes the roots of the
SDKs, which import every service.
"""
