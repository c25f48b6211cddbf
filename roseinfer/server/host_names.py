"""The names that a server answers to."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from roseinfer.core.errors import ConfigError

ANY = "*"
LOCAL_HOSTS = ("localhost", "*.localhost", "127.0.0.0/8", "::1")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,255})(?::[0-9]{0,5})?")
_BRACKETED = re.compile(r"\[(.*)\](?::[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]{1,5}$")
_NAME = re.compile(r"(?:\*\.)?[a-z0-9._-]{1,255}")


def allowed_hosts_in(setting: str | None, *, is_loopback: bool) -> tuple[str, ...]:
    """The names in a setting, which has commas between them; without one, local names on a loopback address, or any.

    Raises ConfigError for what can be no name, pattern or network.
    """
    if setting is None:
        return LOCAL_HOSTS if is_loopback else (ANY,)
    names = tuple(name for part in setting.split(",") if (name := part.strip()))
    if not names:
        raise ConfigError(f"allowed_hosts: {setting!r} names no host")
    if ANY in names:
        return (ANY,)
    HostNames(names)
    return names


class HostNames:
    """Names (`example.com`), patterns (`*.example.com`: names below it), addresses, networks (`10.0.0.0/8`); any case.

    A port behind one counts for nothing. Raises ConfigError for anything else.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        parsed = [_parse(name) for name in allowed]
        self._networks = [each for each in parsed if not isinstance(each, str)]
        names = [each for each in parsed if isinstance(each, str)]
        self._names = frozenset(name for name in names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*"))

    def __contains__(self, host: str) -> bool:
        """Whether a Host header's value names one of them."""
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].removesuffix(".")
        if name in self._names or name.endswith(self._suffixes):
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _parse(allowed: str) -> str | Network:
    text = allowed.strip().lower()
    bracketed = _BRACKETED.fullmatch(text)
    name = bracketed[1] if bracketed else text if text.count(":") > 1 else _PORT.sub("", text)
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        pass
    if not _NAME.fullmatch(name):
        raise ConfigError(f"allowed_hosts: {allowed!r} is no host name, *.suffix, address or network")
    return name.removesuffix(".")
