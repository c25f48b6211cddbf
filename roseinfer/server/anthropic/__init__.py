"""Anthropic's Messages API as a translation onto chats: requests on the way in, answers and errors on the way out."""
