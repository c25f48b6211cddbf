"""roseinfer: an LLM inference engine and server."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("roseinfer")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
