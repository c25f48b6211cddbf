"""The graph between a model file and a backend."""

from roseinfer.graph.graph import AttentionSpec, Graph, GraphError, Op, RopeSpec, Value

__all__ = ["AttentionSpec", "Graph", "GraphError", "Op", "RopeSpec", "Value"]
