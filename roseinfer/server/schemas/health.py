"""Bodies of the health routes."""

from __future__ import annotations

from pydantic import BaseModel, Field


class HealthReply(BaseModel):
    status: str = Field(description="ok")
