"""What all request bodies, and the objects in them, have in common."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")
# One wrong item is enough: a list of a million of them would be a million errors.
Items = Annotated[list[Item], Field(fail_fast=True)]


class Body(BaseModel):
    """Strict: true is no number, "3" neither, and there are no fields but these."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
