"""What all request bodies, and the objects in them, have in common."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Strict: true is no number, "3" neither, and there are no fields but these."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
