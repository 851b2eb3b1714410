"""What requests may say: OpenAI's fields that act here, ours beside them, and the range of every number. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, field_validator

from redraft.numbers import SEEDS, WIDEST

LEAST_TEMPERATURE = 1e-4
Temperature = Annotated[float, Ge(0), Le(1000)]
Stop = Annotated[str, MinLen(1), MaxLen(200)]


class Strict(BaseModel):
    """No unknown field, no NaN, no number in a string."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False


class Writes(Strict):
    """What both endpoints that write text take."""

    model: str = Field(description="one of /v1/models")
    max_tokens: int | None = Field(
        None, ge=0, le=WIDEST, description="tokens to write; left out: what is left of the context"
    )
    n: int = Field(1, ge=1, le=1024, description="texts; text i is row i of Model.sample with the same seed")
    seed: int | None = Field(None, ge=SEEDS[0], le=SEEDS[1], description="left out: drawn, and told in the answer")
    temperature: Temperature = Field(1.0, description="0, or at least 1e-4")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], MaxLen(16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    sampler: str = Field("", description="by name (redraft list samplers); the family's own if left out")
    steps: int = Field(64, ge=1, le=WIDEST, description="for samplers that have steps")
    options: dict[str, Any] = Field({}, description="further settings of the sampler")
    guidance: float = Field(0.0, ge=0, le=1000, description="weight of classifier-free guidance by the prompt; 0: none")
    guidance_kind: Literal["unsupervised", "standard"] = "unsupervised"
    frames: bool = Field(False, description="with stream: send whole canvases as they are rewritten")
    # OpenAI's fields that have one meaning here.
    user: str | None = Field(None, description="ignored")
    presence_penalty: Annotated[float, Ge(0), Le(0)] | None = None
    frequency_penalty: Annotated[float, Ge(0), Le(0)] | None = None
    logit_bias: Annotated[dict[str, Any], MaxLen(0)] | None = None

    @field_validator("temperature")
    @classmethod
    def _not_nearly_zero(cls, value: float) -> float:
        if 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {LEAST_TEMPERATURE:g}")
        return value

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Completion(Writes):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], MinLen(1), MaxLen(1024)] = Field("", description="one text, or several")
    suffix: str | None = Field(None, description="text to fill in before; not for left-to-right families")
    echo: bool = Field(False, description="the text begins with the prompt")
    logprobs: int | None = Field(None, ge=0, le=20, description="so many likeliest tokens a place; for family ar")
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="ignored")

    def turn(self) -> dict[str, str]:
        said = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": said}


class Chat(Writes):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], MinLen(1), MaxLen(1024)]
    max_completion_tokens: int | None = Field(None, ge=0, le=WIDEST, description="as max_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class Scored(Strict):
    """POST /v1/score."""

    model: str
    text: Annotated[str, MinLen(1)]
    draws: int = Field(32, ge=1, le=1024, description="noise draws of a bound; an exact likelihood needs none")
    seed: int = Field(0, ge=SEEDS[0], le=SEEDS[1])
