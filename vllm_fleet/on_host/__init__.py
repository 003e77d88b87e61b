"""Programs that run on hosts: standard library only, Python 3.8. They import nothing of the project."""
