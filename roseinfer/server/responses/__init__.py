"""OpenAI's Responses API, without memory, as a translation onto chats."""
