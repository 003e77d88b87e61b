"""Says as JSON what an engine's wheels depend on: machine, Pythons, glibc, ROCm, and which GPUs the kernel shows."""

import glob
import json
import os
import re
import sys

found = re.findall(r"/usr/bin/python(3\.\d+)\n", "\n".join([*glob.glob("/usr/bin/python3.*"), ""]))
glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "glibc").split()[1:]
try:
    with open(os.path.join(os.environ.get("ROCM_PATH", "/opt/rocm"), ".info", "version")) as file:
        rocm = file.read().strip().split("-")[0]
except OSError:
    rocm = ""
json.dump(
    {
        "machine": os.uname().machine,
        # The distribution's own first: the packages that compile against Python are made for it.
        "pythons": sorted(found, key=lambda each: each != "%d.%d" % sys.version_info[:2]),
        "glibc": "".join(glibc[:1]),
        "rocm": rocm,
        "devices": [name for name, node in (("cuda", "nvidiactl"), ("rocm", "kfd")) if os.path.exists("/dev/" + node)],
    },
    sys.stdout,
)
