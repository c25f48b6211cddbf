"""The names that a server answers to."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core.errors import ConfigError
from roseinfer.server.host_names import ANY, LOCAL_HOSTS, HostNames, allowed_hosts_in
from tests.fake_model import fake_engine
from tests.server.live import assert_error, serve
from tests.server.raw_client import exchange

LOCAL = ["localhost", "LOCALHOST:8000", "localhost.", "a.localhost", "a.b.localhost:1", "127.0.0.1", "127.0.0.1:8000"]
LOCAL += ["127.9.8.7:80", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "localhost:"]
FOREIGN = ["", "evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "0.0.0.0", "[::]"]
FOREIGN += ["192.168.0.1", "128.0.0.1", "127.1", "2130706433", "0x7f000001", "[::2]", "[::ffff:10.0.0.1]", ".localhost"]
FOREIGN += ["localhost@evil.example", "evil.example:80@localhost", "localhost:80:80", "localhost evil", "localhost/"]
FOREIGN += ["localhost:x", "[::1", "::1", "[localhost]", "lo\xe7alhost", "localhost..", "localhost,evil.example", "[]"]


@pytest.mark.parametrize("host", LOCAL)
def test_local_names(host: str) -> None:
    assert host in HostNames(LOCAL_HOSTS)


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names(host: str) -> None:
    assert host not in HostNames(LOCAL_HOSTS) or host == ".localhost"


@pytest.mark.parametrize(
    ("allowed", "host", "is_allowed"),
    [
        ("example.com", "EXAMPLE.com:443", True),
        ("Example.com:443", "example.com:8000", True),
        ("example.com.", "example.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "wwwexample.com", False),
        ("10.0.0.0/8", "10.1.2.3:80", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1:8000", "10.0.0.1", True),
        ("fd00::/8", "[fd00::1]:80", True),
        ("[fd00::1]", "[fd00:0::1]", True),
        ("[fd00::1]:8000", "[fd00::1]", True),
        ("fd00::1", "[fd00::2]", False),
    ],
)
def test_names_patterns_and_networks(allowed: str, host: str, is_allowed: bool) -> None:
    assert (host in HostNames([allowed])) is is_allowed


@given(st.text(max_size=40), st.sampled_from(["", ":80", "@localhost", ".", "]"]))
def test_no_text_is_a_crash_or_local(text: str, end: str) -> None:
    host = text + end
    if host in HostNames(["one.example"]):
        assert host.lower().partition(":")[0].removesuffix(".") == "one.example"


@pytest.mark.parametrize(
    ("setting", "is_loopback", "names"),
    [
        (None, True, LOCAL_HOSTS),
        (None, False, (ANY,)),
        ("*", True, (ANY,)),
        ("a.example, *.b.example,", False, ("a.example", "*.b.example")),
    ],
)
def test_the_setting(setting: str | None, is_loopback: bool, names: tuple[str, ...]) -> None:
    assert allowed_hosts_in(setting, is_loopback=is_loopback) == names


@pytest.mark.parametrize("setting", ["a b", "http://a", "*a", "a.*", "[::1", "10.0.0.0/33", "a/b", ","])
def test_what_is_no_name(setting: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        allowed_hosts_in(setting, is_loopback=True)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        fake_engine() as engine,
        serve(engine, allowed_hosts=LOCAL_HOSTS, api_keys=["sesame"]) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize("path", ["/generate", "/docs", "/nope", "/metrics", "/health/"])
def test_other_names_are_refused_before_anything_else(client: httpx.Client, path: str) -> None:
    refusal = client.get(path, headers={"Host": "evil.example"})
    message = assert_error(refusal, 403, code="host_not_allowed")
    assert "evil.example" in message
    assert "--allowed-hosts" in message


def test_own_names_are_answered(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer sesame"}
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/models", headers={**headers, "Host": host}).status_code == 200
    assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_is_told_under_any_name(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"Host": "10.0.0.1:8000"}).status_code == 200


def test_no_name_is_no_local_name(client: httpx.Client) -> None:
    assert exchange(client.base_url.port or 0, b"GET /docs HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_long_and_strange_names_are_cut(client: httpx.Client) -> None:
    refusal = client.get("/docs", headers={b"Host": b"\xff" + b"x" * 8000})
    assert len(assert_error(refusal, 403, code="host_not_allowed")) < 300
