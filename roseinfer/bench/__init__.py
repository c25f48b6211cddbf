"""`roseinfer bench`: measures a model here, or any server that speaks OpenAI's completions or our `/generate`.

A workload (`workloads`) becomes prompts (`prompts`), these become calls on a target (`targets`: a server's URL, a
server of our own, or the engine without HTTP), which `load` sends in a closed or an open loop. What the clock said is
kept per request, and only afterwards read (`protocols`), turned into figures (`metrics`) and printed (`report`).
"""

from roseinfer.bench.main import BenchOptions, run_bench
from roseinfer.bench.workloads import choose_workloads

__all__ = ["BenchOptions", "choose_workloads", "run_bench"]
