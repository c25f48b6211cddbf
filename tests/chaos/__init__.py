"""What faults, load and time do to a live server, measured: `python -m tests.chaos`.

A package of its own name, so that no module in it hides a library of the same name.
"""
