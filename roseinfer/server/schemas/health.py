"""Bodies of the health routes."""

from __future__ import annotations

from pydantic import BaseModel


class HealthReply(BaseModel):
    status: str = Field(description="ok")
