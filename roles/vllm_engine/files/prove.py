"""Proves an engine before it may be used; run by its own Python: RELEASE PLATFORM VERSION DEVICES.

Checks every file of every package, that there is one triton, the builds of torch and vLLM, and that vLLM answers.
"""

import csv
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile

release, platform, version, devices = sys.argv[1:]
errors = []
facts = {}
site = pathlib.Path(sysconfig.get_paths()["purelib"])


def check(holds, fault):
    """Records an error unless the condition holds."""
    if not holds:
        errors.append(fault)


def incomplete(record):
    """The files of one package that are missing or empty; no more, as pynvvideocodec 2.0.4 lists wrong sizes."""
    with record.open(newline="", encoding="utf-8") as file:
        for name, _, size in csv.reader(file):
            path = os.path.join(site, name)
            if not os.path.exists(path) or (size not in ("", "0") and not os.path.getsize(path)):
                yield name


for record in sorted(site.glob("*.dist-info/RECORD")):
    check(not (bad := list(incomplete(record))), f"{record.parent.name}: {len(bad)} files are not whole: {bad[:3]}")
tritons = importlib.metadata.packages_distributions().get("triton", [])
check(len(set(tritons)) == 1, f"there must be one triton, there are {sorted(set(tritons)) or 'none'}")
installed = importlib.metadata.version("vllm")
check(installed.split("+")[0] == release, f"vllm is {installed}, not {release}")
if platform == "rocm":
    check("+rocm" in installed, f"vllm is {installed}: without +rocm it is the CUDA build")

# vLLM writes into its home on import.
with tempfile.TemporaryDirectory() as home:
    os.environ.update(HOME=home, VLLM_CACHE_ROOT=home, VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    if not errors:
        import torch

        built = {"cuda": torch.version.cuda, "rocm": torch.version.hip}.get(platform)
        same = platform == "cpu" or (built and built.split(".")[:2] == version.split(".")[:2])
        check(same, f"torch {torch.__version__} is built for {built}, not for {platform} {version}")
        facts["torch"] = torch.__version__
    if not errors:
        import vllm
        from vllm.platforms import current_platform

        kind = "rocm" if current_platform.is_rocm() else "cuda" if current_platform.is_cuda() else "none"
        kind = "cpu" if current_platform.is_cpu() else kind
        # Without a GPU a build for GPUs finds no platform, and reports another one.
        wanted = {platform} if platform == "cpu" or platform in devices else {platform, "none"}
        check(kind in wanted, f"vLLM takes this host for {kind}, not for {platform}")
        facts.update(vllm=vllm.__version__, platform=kind)
    if not errors:
        program = os.path.join(os.path.dirname(sys.executable), "vllm")
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        answers = done.returncode == 0 and last.split("+")[0] == release
        # 0.32 looks for a device before it answers, and fails with this text if there is no device.
        mute = kind == "none" and "Failed to infer device type" in done.stderr
        check(answers or mute, f"vllm --version: {last or done.stderr[-2000:]}")
        facts["answer"] = last if answers else "needs a device"

json.dump({"errors": errors, "facts": facts}, sys.stdout)
sys.exit(bool(errors))
