"""`python -m roseinfer` is the `roseinfer` command."""

from __future__ import annotations

from roseinfer.cli import main

if __name__ == "__main__":
    main()
