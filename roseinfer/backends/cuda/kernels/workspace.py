"""Device memory that kernels share for a moment: partial results, and counters of who has delivered theirs."""

from __future__ import annotations

import torch


class Workspace:
    """Kernels on one stream use it one after the other.

    `partials` is float32[num_floats], of no content between kernels. `counters` is int32[num_counters], zero between
    kernels: whoever counts up sets it back.
    """

    def __init__(self, device: torch.device | str, num_floats: int, num_counters: int):
        self.partials = torch.empty(num_floats, dtype=torch.float32, device=device)
        self.counters = torch.zeros(num_counters, dtype=torch.int32, device=device)
