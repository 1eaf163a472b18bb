"""The objects and the function that clients of Python hand over, as pydantic and plain Python have them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cases import called
from pydantic import BaseModel, Field, SecretStr


class Report(BaseModel):
    """The weather of some days."""

    city: Literal["Muş", "Van"]
    days: list[bool] = Field(max_length=3)


class Place(BaseModel):
    """Tells the weather of a city."""

    city: Literal["Muş", "Van"]
    day: Literal["today", "tomorrow"]


class Degrees(BaseModel):
    """Names that are free, as keys."""

    degrees: dict[str, float]


class Days(BaseModel):
    """Items that differ."""

    days: set[Literal["Mon", "Tue"]]


class Forms(BaseModel):
    """Formats and bounds that pydantic writes by itself."""

    file: Path
    secret: SecretStr
    raw: bytes
    count: int = Field(ge=0, le=2**63 - 1)
    large: int = Field(ge=-(2**64), le=2**64)


def weather(city: Literal["Muş", "Van"], day: Literal["today", "tomorrow"]) -> str:
    """Tell the weather of a city.

    Args:
        city: The city.
        day: The day.
    """
    called.append({"city": city, "day": day})
    return "3 °C"


TOOL = {"name": "weather", "description": "Tells the weather.", "parameters": Place.model_json_schema()}


def weather_of(arguments: str) -> str:
    """Call the function with arguments as the model wrote them; those of an open schema may be more than it takes."""
    return weather(**Place.model_validate_json(arguments).model_dump())
