"""Pulumi's plugins on this machine, and the servers that have them.

Where Pulumi keeps and finds plugins was read in the sources of Pulumi 3.259.0, ``sdk/go/common/workspace/plugins.go``:
``getPluginInfoAndPath``, ``fallbackSource``, ``pluginDownloadOverrideArray`` and ``interpolateURL``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge import download
from vllm_fleet.edge.connection import failure_text
from vllm_fleet.fleet.cloud_sdks import Plugin

#: ``regexp=URL`` pairs with which Pulumi takes plugins from other servers.
OVERRIDES = "PULUMI_PLUGIN_DOWNLOAD_URL_OVERRIDES"
_DISABLED = "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"
#: Plugins that run already, which the engine connects to: those of a rehearsal.
_ATTACHED = "PULUMI_DEBUG_PROVIDERS"
#: Where Pulumi looks without overrides, in this order, and the text that the regexps of overrides are compared with.
_GITHUB = (
    "https://github.com/pulumi/pulumi-{name}/releases/download/v{version}",
    "github://api.github.com/pulumi/pulumi-{name}",
)
_PULUMI = ("https://get.pulumi.com/releases/plugins", "https://get.pulumi.com/releases/plugins")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
#: How long a server may take to answer before it counts as out of reach.
_ANSWER_SECONDS = 5.0


def is_rehearsed() -> bool:
    """Whether this run of Pulumi connects to plugins that run already, as a rehearsal has them."""
    return bool(os.environ.get(_ATTACHED))


def plugins_dir() -> Path:
    """The folder of Pulumi's plugins: below ``$PULUMI_HOME``, else below the home of the user."""
    home = os.environ.get("PULUMI_HOME")
    return (Path(home) if home else paths.expand_user("~/.pulumi")) / "plugins"


def is_installed(plugin: Plugin) -> bool:
    """Whether Pulumi finds a plugin without a download: it runs already, is complete in its folder, or is on PATH."""
    attached = (pair.split(":")[0] for pair in os.environ.get(_ATTACHED, "").split(","))
    folder = plugins_dir() / f"resource-{plugin.name}-v{plugin.version}"
    is_complete = folder.is_dir() and not folder.with_name(f"{folder.name}.partial").exists()
    return plugin.name in attached or is_complete or shutil.which(f"pulumi-resource-{plugin.name}") is not None


def archive_name(plugin: Plugin) -> str:
    """The file name of a plugin's archive for this machine."""
    return f"pulumi-resource-{plugin.name}-v{plugin.version}-{_system()}-{_machine()}.tar.gz"


def checksums_name(plugin: Plugin) -> str:
    """The name of the file, beside the archives of a release, with the digest of each."""
    return f"pulumi-{plugin.name}_{plugin.version}_checksums.txt"


def list_origins(plugin: Plugin) -> tuple[str, ...]:
    """The URLs of the folders that a plugin's archive may be in, in the order to try.

    Raises:
        FleetError: an override is not in Pulumi's form, or is not an HTTP address.
    """
    given = os.environ.get(OVERRIDES, "")
    overrides = list(_parse_overrides(given))
    folders: list[str] = []
    for folder, source in (_GITHUB, _PULUMI):
        source = source.format(name=plugin.name)
        found = next(((regexp.search(source), url) for regexp, url in overrides if regexp.search(source)), None)
        if found is None:
            folders.append(folder.format(name=plugin.name, version=plugin.version))
            continue
        folders.append(_fill_override(*found, plugin))
        if (folder, source) != _PULUMI:
            # An override of the first source takes the place of both.
            break
    return tuple(folders)


def find_origin(plugin: Plugin) -> str:
    """The URL of the first folder whose server has the archive of a missing plugin, asked within seconds.

    Raises:
        FleetError: none has it (``work-failed``), or an override is wrong.
    """
    reasons = []
    for folder in list_origins(plugin):
        reason = _absence(f"{folder}/{archive_name(plugin)}")
        if reason is None:
            return folder
        reasons.append(f"{urllib.parse.urlsplit(folder).hostname}: {reason}")
    raise FleetError(
        f"{_missing(plugin)} and cannot be fetched: {'; '.join(reasons)}",
        f"a server of your own: {OVERRIDES}, docs/stacks.md",
        code=ErrorCode.WORK_FAILED,
    )


def check_reachable(plugins: Sequence[Plugin], fleet: str) -> None:
    """Refuses a run of Pulumi that would end without the plugins of its clouds. Pulumi itself would try for minutes.

    Args:
        plugins: what the fleet needs.
        fleet: its name, for the command.

    Raises:
        FleetError: a plugin is neither on this machine nor on a server that answers.
    """
    command = f"make plugins FLEET={fleet}"
    for plugin in plugins:
        if is_installed(plugin):
            continue
        if os.environ.get(_DISABLED, "").lower() in ("true", "1"):
            raise FleetError(f"{_missing(plugin)}, and {_DISABLED} keeps Pulumi from fetching it", f"run '{command}'")
        try:
            find_origin(plugin)
        except FleetError as fault:
            fault.hint = f"run '{command}' where the internet is, copy .pulumi/home/plugins from there; {fault.hint}"
            raise


def _missing(plugin: Plugin) -> str:
    return f"Pulumi's plugin {plugin} is not in {paths.display(plugins_dir())}"


def _absence(url: str) -> str | None:
    """Why a server does not give a file; None: it has it, or says at which address it is."""
    import httpx  # not before: where the plugin is there, nothing is asked

    try:
        answer = httpx.head(url, timeout=_ANSWER_SECONDS, verify=download.system_trust())
    except httpx.HTTPError as error:
        return failure_text(error)
    return None if answer.status_code < httpx.codes.BAD_REQUEST else f"HTTP {answer.status_code} for {url}"


def _parse_overrides(text: str) -> Iterator[tuple[re.Pattern[str], str]]:
    for pair in text.split(",") if text else ():
        regexp, equals, url = pair.partition("=")
        if not regexp or not equals or not url or "=" in url:
            raise FleetError(f"{OVERRIDES} has {pair!r}", "write REGEXP=URL, several separated by commas")
        try:
            yield re.compile(regexp), url
        except re.error as fault:
            raise FleetError(f"{OVERRIDES}: {regexp!r} is no regular expression: {fault}", "correct it") from None


def _fill_override(found: re.Match[str] | None, url: str, plugin: Plugin) -> str:
    """The URL of an override, with what its regexp has found and what Pulumi knows of the plugin."""
    if found is None:
        raise AssertionError("an override is filled in without a match")
    for index, text in enumerate((found[0], *found.groups(default=""))):
        url = url.replace(f"${index}", text)
    for name, text in found.groupdict(default="").items():
        url = url.replace(f"${{{name}}}", text)
    known = {"NAME": plugin.name, "VERSION": plugin.version, "OS": _system(), "ARCH": _machine()}
    for name, text in known.items():
        url = url.replace(f"${{{name}}}", text)
    if not url.startswith(("http://", "https://")):
        raise FleetError(
            f"{OVERRIDES} leads to {url}, and only http:// and https:// are asked here",
            f"run 'pulumi plugin install resource {plugin.name} {plugin.version} --exact', which knows more",
        )
    return url.rstrip("/")


def _system() -> str:
    return platform.system().lower()


def _machine() -> str:
    return _MACHINES.get(platform.machine(), platform.machine())
