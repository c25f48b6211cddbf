"""What happens around every request: one pure ASGI middleware per file, listed in `app.py`."""
