"""Finds out what a server understands: which protocol, which prompts, and who can count their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roseinfer.bench.http_client import BadResponseError, HttpClient
from roseinfer.bench.prompts import (
    WORDS,
    IdPrompts,
    Prompt,
    PromptSource,
    TextPrompts,
    count_words,
    estimated_count,
    tokenizer_count,
    tokenizer_ids,
)
from roseinfer.bench.protocols import ApiProtocol, Completions, Generate, Reply
from roseinfer.bench.targets import HttpCall, HttpTarget
from roseinfer.core.errors import ConfigError

if TYPE_CHECKING:
    from roseinfer.text import Tokenizer

_ABSENT = (404, 405, 501)
_ALL_WORDS = " ".join(WORDS)


async def connect(
    url: str,
    *,
    api_key: str | None = None,
    tokenizer: Tokenizer | None = None,
    facts: dict[str, Any] | None = None,
    pid: int | None = None,
) -> HttpTarget:
    """The server at `url`. `tokenizer` makes the prompts where the server has no /tokenize route.

    Raises ConfigError if nobody answers there, or nobody who completes prompts.
    """
    client = HttpClient(url, api_key)
    try:
        protocol = await _protocol(client)
        prompts = await _prompts(client, protocol, tokenizer)
    except (OSError, BadResponseError, ConfigError) as error:
        client.close()
        raise ConfigError(f"{url}: {error}") from None
    model = {"model": protocol.model} if isinstance(protocol, Completions) and protocol.model else {}
    return HttpTarget(client, protocol, prompts, facts={"url": url, **(facts or {}), **model}, pid=pid)


async def _protocol(client: HttpClient) -> ApiProtocol:
    """The first that completes a prompt of one letter."""
    candidates: list[ApiProtocol] = [Completions(await _model(client)), Generate()]
    for protocol in candidates:
        status, content = await client.fetch(protocol.path, protocol.body(Prompt("a", None), 1))
        if status == 200:
            return protocol
        if status not in _ABSENT:
            hint = "; see --api-key" if status in (401, 403) else ""
            raise ConfigError(f"{protocol.path} answers HTTP {status}{hint}: {content!s:.200}")
    raise ConfigError("there is neither /v1/completions nor /generate")


async def _model(client: HttpClient) -> str | None:
    """The first that the server names; some want it back in every request."""
    status, content = await client.fetch("/v1/models")
    try:
        return str(content["data"][0]["id"]) if status == 200 else None
    except (LookupError, TypeError):
        return None


async def _prompts(client: HttpClient, protocol: ApiProtocol, tokenizer: Tokenizer | None) -> PromptSource:
    """The best there is: token ids, text that is counted, text whose length is a guess."""
    tokenize = _RemoteTokenizer(client)
    pool = await tokenize.ids(_ALL_WORDS, add_special=False)
    if isinstance(protocol, Completions):
        ids = await _id_prompts(tokenize, pool, tokenizer)
        if ids is not None and await _takes_ids(client, protocol, ids):
            return ids
    if pool:
        return TextPrompts(tokenize.count, source="counted by the server's /tokenize")
    if tokenizer is not None:
        return TextPrompts(tokenizer_count(tokenizer), source="counted by the tokenizer here")
    num_tokens = (await _ask(client, protocol, Prompt(_ALL_WORDS, None))).num_input_tokens
    if num_tokens is not None:
        return TextPrompts(estimated_count(num_tokens), source="length estimated from usage", is_exact=False)
    return TextPrompts(count_words, source="counted in words: no tokenizer here, see --tokenizer", is_exact=False)


async def _id_prompts(
    tokenize: _RemoteTokenizer, pool: list[int] | None, tokenizer: Tokenizer | None
) -> IdPrompts | None:
    if pool:
        return IdPrompts(pool, await tokenize.ids("", add_special=True) or (), source="of the server's /tokenize")
    return tokenizer_ids(tokenizer) if tokenizer is not None else None


async def _takes_ids(client: HttpClient, protocol: ApiProtocol, source: IdPrompts) -> bool:
    reply = await _ask(client, protocol, Prompt(source.every_id, None))
    return reply.error is None and reply.num_input_tokens in (None, len(source.every_id))


async def _ask(client: HttpClient, protocol: ApiProtocol, prompt: Prompt) -> Reply:
    """One token."""
    call = HttpCall(client, protocol, prompt, 1)
    await call.send()
    return call.reply()


class _RemoteTokenizer:
    """`POST /tokenize` in the dialects of llama.cpp (`content`) and vLLM (`prompt`) at once."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    async def ids(self, text: str, *, add_special: bool) -> list[int] | None:
        """None if the server does not tell."""
        body = {"content": text, "prompt": text, "add_special": add_special, "add_special_tokens": add_special}
        status, content = await self._client.fetch("/tokenize", body)
        ids = content.get("tokens") if status == 200 and isinstance(content, dict) else None
        is_sound = isinstance(ids, list) and all(isinstance(token_id, int) for token_id in ids)
        return ids if is_sound else None

    async def count(self, text: str) -> int:
        """Raises BadResponseError if the server no longer tells."""
        ids = await self.ids(text, add_special=True)
        if ids is None:
            raise BadResponseError("/tokenize gives no tokens")
        return len(ids)
