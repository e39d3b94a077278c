"""Blueprints of plugins under the API's own kind of request."""

from __future__ import annotations

from quart import Blueprint, Quart

from fastlane_core.api.bodies import BoundedRequest


async def test_hooks_of_a_blueprint_hold_for_those_nested_in_it() -> None:
    asked: list[str] = []
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)

    @outer.before_request
    async def look_outside() -> None:
        asked.append("outer")

    @inner.before_request
    async def look_inside() -> None:
        asked.append("inner")

    @inner.get("/nested")
    async def answer() -> str:
        return "answered"

    outer.register_blueprint(inner)
    app = Quart(__name__)
    app.request_class = BoundedRequest
    app.register_blueprint(outer)

    found = await app.test_client().get("/nested")

    assert await found.get_data(as_text=True) == "answered"
    assert asked == ["outer", "inner"]
