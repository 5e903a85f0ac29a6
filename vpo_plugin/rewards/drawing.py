"""Drawings of candidates: what a spec's `drawing` function returns, numbers and names that the report draws.

Candidates are untrusted text. A drawing function parses them into coordinates and never returns their text.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Place = Annotated[int, Field(ge=0, lt=1000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Tile(_Model):
    """One square of the grid that is not empty."""

    x: Place
    """Column, from 0."""
    y: Place
    """Row, from 0 at the top."""
    name: str
    """What it is, for the legend."""
    symbol: str = Field("", max_length=2)
    colour: Literal["none", "ink", "yellow", "blue", "red", "green", "purple"] = "none"


class Drawing(_Model):
    """A grid of tiles, and a route over it for each candidate."""

    width: int = Field(ge=1, le=1000)
    height: int = Field(ge=1, le=1000)
    tiles: list[Tile]
    routes: list[list[tuple[Place, Place]] | None]
    """For each candidate the tiles `(x, y)` that it visits, in order; None if it is not a route."""


def draw(function: Callable[..., object], label: object, candidates: Iterable[str]) -> dict[str, Any]:
    """What a spec's function draws, as plain data `{width, height, tiles, routes: {candidate: [[x, y], …]}}`.

    Candidates that are not routes are left out. Raises ValueError if the function does not return a `Drawing`.
    """
    texts = list(dict.fromkeys(candidates))
    plain = Drawing.model_validate(function(label, texts)).model_dump(mode="json")
    if len(plain["routes"]) != len(texts):
        raise ValueError(f"A drawing of {len(texts)} candidates needs as many routes, but has {len(plain['routes'])}.")
    return {**plain, "routes": {text: route for text, route in zip(texts, plain["routes"], strict=True) if route}}
