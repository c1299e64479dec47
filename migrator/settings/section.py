"""Common parts of the configuration's sections: how keys are read, and kinds of values that several of them have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from migrator.settings.values import Seconds, Text

#: No limit and no count of ours is meant to be larger; journal and event loop take no number of any size.
LARGEST = 1_000_000_000
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
#: Longer than nothing.
Duration = Annotated[Seconds, Field(gt=0)]
#: A command and its arguments; no shell reads it.
Arguments = tuple[Text, ...]


class Section(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)
