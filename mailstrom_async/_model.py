"""The base of all public models: frozen, and strict about names."""

import ast
import inspect
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails


class Frozen(BaseModel):
    """An immutable model in which an unknown field is an error rather than silently ignored."""

    # The input would be quoted in errors, and they end up in logs: it may hold passwords, bodies and hidden recipients.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _module: ClassVar[str]
    """Where it was written; `__module__` says where users import it from."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in type(self).__private_attributes__:  # of a subclass of the user's
            super().__setattr__(name, value)
            return
        # pydantic quotes the value in this error, whatever the setting above.
        frozen = InitErrorDetails(type="frozen_instance", loc=(name,), input=None)
        raise ValidationError.from_exception_data(type(self).__name__, [frozen], hide_input=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        cls._module = cls.__module__

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the docstrings of the fields as descriptions.

        What pydantic has for that, `use_attribute_docstrings`, reads the source of every model when it is imported,
        which took as long as all the rest of our models; few programs ask for a schema.
        """
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        ours = [base for base in cls.__mro__ if issubclass(base, Frozen) and base is not Frozen]
        for base in ours:
            for name, text in _docstrings(base._module, base.__qualname__).items():
                if (field := cls.model_fields.get(name)) is None:
                    continue  # a class variable or a private attribute
                for key in {name, field.alias, field.serialization_alias} & properties.keys():
                    properties[key].setdefault("description", text)
        return schema


P = ParamSpec("P")
Model = TypeVar("Model", bound=Frozen)

# What `object.__setattr__` would look up each time; pydantic's own `model_construct` sets the same four.
_new: Any = object.__new__
_set_values = BaseModel.__dict__["__dict__"].__set__
_set_given, _set_extra, _set_private = (
    BaseModel.__dict__[f"__pydantic_{slot}__"].__set__ for slot in ("fields_set", "extra", "private")
)


def trusted(model: Callable[P, Model], *_: P.args, **values: P.kwargs) -> Model:
    """A model of values that are ours, each of the type that its field has: it takes a third less time than validation,
    and half of it where there are many fields.

    Type checkers look at it as at a call of the model. For those that are made for every mail; a default factory is
    not asked. If all fields are given, then in their order.
    """
    made: Model = _new(model)
    defaults = _defaults[model]
    _set_given(made, set(values))
    _set_values(made, values if len(values) == len(defaults) else {**defaults, **values})
    _set_extra(made, None)
    _set_private(made, None)
    return made


class _Defaults(dict[Any, dict[str, Any]]):
    """All fields of a model in their order, with what they are if nothing else is said."""

    def __missing__(self, model: type[Frozen]) -> dict[str, Any]:
        self[model] = {name: field.default for name, field in model.model_fields.items()}
        return self[model]


_defaults = _Defaults()


@cache
def _docstrings(module: str, model: str) -> dict[str, str]:
    """The text behind each field of a class; none where there is no source."""
    try:
        source = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, KeyError, TypeError):  # TypeError: that of an interactive session
        return {}
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for definition in source.body
        if isinstance(definition, ast.ClassDef) and definition.name == model
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
