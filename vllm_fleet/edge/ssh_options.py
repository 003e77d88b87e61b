"""Which settings of ``ssh`` decide how a host is reached. A setting that is not listed here is taken to do so."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vllm_fleet.base.errors import FleetError

#: Options that change neither the way to a host nor the login there: what is left of them is decided by the
#: connection itself (trust, reuse, timeouts), or is tried again with ``ssh`` when a login fails. From ssh_config(5) of
#: OpenSSH 9.9, and the options of Debian's and Red Hat's packages.
HARMLESS = frozenset(
    {
        "addkeystoagent",
        "batchmode",
        "casignaturealgorithms",
        "challengeresponseauthentication",
        "channeltimeout",
        "checkhostip",
        "ciphers",
        "clearallforwardings",
        "compression",
        "connectionattempts",
        "connecttimeout",
        "controlmaster",
        "controlpath",
        "controlpersist",
        "enableescapecommandline",
        "enablesshkeysign",
        "escapechar",
        "exitonforwardfailure",
        "fingerprinthash",
        "forkafterauthentication",
        "forwardagent",
        "forwardx11",
        "forwardx11timeout",
        "forwardx11trusted",
        "gatewayports",
        "globalknownhostsfile",
        "gssapiauthentication",
        "gssapiclientidentity",
        "gssapidelegatecredentials",
        "gssapikexalgorithms",
        "gssapikeyexchange",
        "gssapirenewalforcesrekey",
        "gssapiserveridentity",
        "gssapitrustdns",
        "hashknownhosts",
        "hostbasedacceptedalgorithms",
        "hostbasedauthentication",
        "hostkeyalgorithms",
        "hostkeyalias",
        "ignoreunknown",
        "ipqos",
        "kbdinteractiveauthentication",
        "kbdinteractivedevices",
        "kexalgorithms",
        "localcommand",
        "loglevel",
        "logverbose",
        "macs",
        "nohostauthenticationforlocalhost",
        "numberofpasswordprompts",
        "obscurekeystroketiming",
        "passwordauthentication",
        "permitlocalcommand",
        "permitremoteopen",
        "preferredauthentications",
        "pubkeyacceptedalgorithms",
        "pubkeyacceptedkeytypes",
        "pubkeyauthentication",
        "rekeylimit",
        "requesttty",
        "requiredrsasize",
        "revokedhostkeys",
        "sendenv",
        "serveralivecountmax",
        "serveraliveinterval",
        "setenv",
        "streamlocalbindmask",
        "streamlocalbindunlink",
        "stricthostkeychecking",
        "syslogfacility",
        "tcpkeepalive",
        "tunnel",
        "tunneldevice",
        "updatehostkeys",
        "userknownhostsfile",
        "verifyhostkeydns",
        "visualhostkey",
        "warnweakcrypto",
        "xauthlocation",
    }
)
HARMLESS_FLAGS = frozenset(
    {"-a", "-A", "-C", "-k", "-K", "-q", "-t", "-tt", "-T", "-v", "-vv", "-vvv", "-x", "-X", "-Y"}
)
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_MAX_INCLUDES = 16


def are_harmless(arguments: Sequence[str]) -> bool:
    """Whether arguments of ``ssh`` leave the way to a host as it is without them.

    Args:
        arguments: the arguments, without host and command.
    """
    words = iter(arguments)
    for word in words:
        if word in HARMLESS_FLAGS:
            continue
        if not word.startswith("-o"):
            return False
        setting = word[2:] or next(words, "")
        if _keyword(setting) not in HARMLESS:
            return False
    return True


def _keyword(setting: str) -> str:
    return re.split(r"[\s=]", setting.strip(), maxsplit=1)[0].lower()


def have_settings(config_file: Path | None) -> bool:
    """Whether ssh's configuration has a setting, for any host, that may change how a host is reached.

    Args:
        config_file: the file given with ``-F``; None reads those of the user and the system.
    """
    files = [config_file] if config_file else [user_home() / ".ssh/config", _SYSTEM_CONFIG]
    return any(keyword not in HARMLESS for file in files for keyword in _keywords(file, 0))


def user_home() -> Path:
    """The home directory that ``ssh`` uses: that of the account, not ``$HOME``.

    Raises:
        FleetError: the account has no entry in passwd; ssh refuses to start then.
    """
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise FleetError(
            f"ssh does not work for the user {os.getuid()}, who is not in /etc/passwd", "add an entry for this user"
        ) from None


def _keywords(file: Path, depth: int) -> Iterator[str]:
    """The keywords of a file and of those that it includes; a block is not a setting, the settings in it are."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in map(str.strip, text.splitlines()):
        keyword = _keyword(line)
        if not line or line.startswith("#") or keyword in ("host", "match"):
            continue
        if keyword != "include" or depth == _MAX_INCLUDES:
            yield keyword
        else:
            for included in _included(line[len(keyword) :], system=file.is_relative_to("/etc/ssh")):
                yield from _keywords(included, depth + 1)


def _included(patterns: str, *, system: bool) -> Iterator[Path]:
    base = Path("/etc/ssh") if system else user_home() / ".ssh"
    for quoted, plain in re.findall(r'"([^"]*)"|([^\s"=]+)', patterns):
        pattern = Path(quoted or plain)
        if str(pattern).startswith("~/"):
            pattern = user_home() / str(pattern)[2:]
        full = pattern if pattern.is_absolute() else base / pattern
        yield from (path for path in Path(full.anchor).glob(str(full.relative_to(full.anchor))) if path.is_file())


def parse_settings(text: str) -> Mapping[str, tuple[str, ...]]:
    """What ``ssh -G`` prints: keyword -> its values in order."""
    settings: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        settings[keyword.lower()] = (*settings.get(keyword.lower(), ()), value)
    return settings


def differ(settings: Mapping[str, tuple[str, ...]], defaults: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether two results of ``ssh -G`` reach a host in different ways."""
    keywords = (set(settings) | set(defaults)) - HARMLESS
    return any(settings.get(keyword) != defaults.get(keyword) for keyword in keywords)
