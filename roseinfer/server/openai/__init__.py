"""OpenAI's completions and chats: bodies → what an engine is asked for, and what it says → replies and streams."""
