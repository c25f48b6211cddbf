"""The CPU backend: a graph becomes a flat program of C++ kernels over weights that stay packed."""

from roseinfer.backends.native.compiler import compile
from roseinfer.backends.native.program import NativeProgram

__all__ = ["NativeProgram", "compile"]
