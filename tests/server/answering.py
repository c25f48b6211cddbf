"""A model of bytes that answers what it is told to, and chat templates that it understands."""

from __future__ import annotations

from roseinfer.core.batch import ForwardInputs
from tests.fake_model import EOS, RecitingProgram

TEMPLATE = """{% if tools %}[{% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>]
{% endif %}{% for message in messages %}{{ message.role }}: {{ message.content or '' }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
THINKING_TEMPLATE = TEMPLATE + "{# <think></think> #}"


class AnsweringProgram(RecitingProgram):
    """Says `answer` behind every prompt, which must have more than one token, and ends."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer.encode()
        self._starts: dict[int, int] = {}  # where the answer begins, by the request's first block

    def forward(self, inputs: ForwardInputs) -> None:
        super().forward(inputs)
        for index, token in enumerate(inputs.logit_rows.tolist()):
            row = int((inputs.row_offsets[1:] <= token).sum())
            block, position = int(inputs.block_tables[row, 0]), int(inputs.positions[token]) + 1
            if inputs.row_offsets[row + 1] - inputs.row_offsets[row] > 1:
                self._starts[block] = position
            said = self.answer[position - self._starts[block] :][:1]
            self._logits[index] = -30
            self._logits[index, said[0] if said else EOS] = 30
