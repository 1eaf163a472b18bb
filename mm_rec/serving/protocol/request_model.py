"""The base of all schemas of requests: what is null is absent, and limits are checked before what they hold is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from mm_rec.serving.json_bodies import is_deeper

NO_EFFECT = "No effect: "
REFUSED = "Refused: "
MAX_JSON_DEPTH = 128  # lists and objects within one another, in schemas, arguments and other free JSON


def no_effect(why: str) -> Any:
    """Return the pydantic field of one that is accepted and changes nothing."""
    return Field(default=None, description=NO_EFFECT + why)


def refused(why: str) -> Any:
    """Return the pydantic field of one that must be null or absent."""
    return Field(default=None, description=REFUSED + why)


def _only_null(value: Any) -> None:
    if value is not None:
        raise ValueError("this is not offered here; leave the field out")


Refused = Annotated[None, BeforeValidator(_only_null)]


def expects(words: str) -> WrapValidator:
    """Replace the errors of a union by one that says in these words what the field may be."""

    def check(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError as error:
            raise ValueError(f"give {words}") from error

    return WrapValidator(check)


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class RequestModel(BaseModel):
    """A request or a part of one; a field that is null is as if it were not there."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let every list end at its first error: of many wrong items, one is told."""
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = {name: one for name, one in value.items() if one is not None}
        if len(given) > len(cls.model_fields):  # of many unknown fields one is an error enough
            for name in [name for name in given if name not in _field_names(cls)][1:]:
                del given[name]
        return given


@cache
def _field_names(model: type[RequestModel]) -> frozenset[str]:
    """Return the names of a model's fields in requests."""
    return frozenset({*model.model_fields, *(field.alias or "" for field in model.model_fields.values())})


@cache
def effective_fields(model: type[RequestModel]) -> tuple[str, ...]:
    """Return the names of a model's fields without those of `no_effect`."""
    fields = model.model_fields.items()
    return tuple(name for name, field in fields if not (field.description or "").startswith(NO_EFFECT))


_SIZE_KEYWORDS = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}


@dataclass(frozen=True, slots=True)
class AtMost:
    """The most of a list, a dictionary or a text, which is refused before anything in it is read."""

    most: int
    what: str = "characters"

    def _check(self, value: Any) -> Any:
        if isinstance(value, list | dict | str) and len(value) > self.most:
            remedy = "shorten it" if isinstance(value, str) else "send fewer"
            raise ValueError(f"at most {self.most:,} {self.what}, and there are {len(value):,}; {remedy}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the value with the check before it."""
        schema = handler(source)
        return core_schema.no_info_before_validator_function(self._check, schema)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of the value, with the limit."""
        described = handler(schema)
        if keyword := _SIZE_KEYWORDS.get(described.get("type", "")):
            described[keyword] = self.most
        return described


def require_shallow(value: Any) -> Any:
    """Return JSON as it is; raises ValueError where it is nested deeper than templates and grammars can follow."""
    if not is_deeper(value, MAX_JSON_DEPTH):
        return value
    raise ValueError(f"this is nested more than {MAX_JSON_DEPTH} deep; make it flatter")


JsonValue = Annotated[Any, AfterValidator(require_shallow)]
JsonObject = Annotated[dict[str, Any], AfterValidator(require_shallow)]
JsonList = Annotated[list[Any], AfterValidator(require_shallow)]


def _short_pairs(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else ()
    if any(len(key) > 64 or (isinstance(text, str) and len(text) > 512) for key, text in pairs):
        raise ValueError("a key has at most 64 characters and a value 512; shorten them")
    return value


# With OpenAI's limits.
Metadata = Annotated[dict[str, str], BeforeValidator(_short_pairs), AtMost(16, "pairs")]
Identifier = Annotated[str, AtMost(64)]
FunctionName = Annotated[
    str,
    Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$"),
    expects("a name of 1 to 64 letters a-z and A-Z, digits, _, - and ."),
]
