"""The torch backend: runs a graph op by op, in plain code. It is the oracle that faster kernels are compared with."""

from roseinfer.backends.torch.program import TorchProgram, compile

__all__ = ["TorchProgram", "compile"]
