"""Adds a distribution's metadata under a second name: NAME VERSION. Run by the engine's own Python."""

import pathlib
import sys
import sysconfig

name, version = sys.argv[1:]
folder = pathlib.Path(sysconfig.get_paths()["purelib"]) / f"{name}-{version}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
(folder / "INSTALLER").write_text("vllm-fleet\n")
(folder / "RECORD").write_text("")
