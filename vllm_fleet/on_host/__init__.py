"""Programs that run on hosts: standard library only, Python 3.8. They do not import the project."""
