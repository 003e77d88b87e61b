"""Adds a distribution's metadata under a second name: NAME VERSION. Run by the engine's own Python."""

import pathlib
import sys
import sysconfig

name, version = sys.argv[1:]
folder = pathlib.Path(sysconfig.get_paths()["purelib"]) / f"{name}-{version}.dist-info"
folder.mkdir(exist_ok=True)
metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
for file, text in (("METADATA", metadata), ("INSTALLER", "vllm-fleet\n"), ("RECORD", "")):
    # A clone shares it with another engine, so it is replaced and never written into.
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(text)
