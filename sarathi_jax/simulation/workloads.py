"""What a workload is made of: requests by their lengths and arrivals. Knows no text and no engine; what draws or reads them is in the files beside it."""

from typing import NamedTuple


class RequestShape(NamedTuple):
    """One request: seconds after the start at which it arrives, tokens of its prompt, tokens to generate."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
