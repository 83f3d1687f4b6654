"""The base of all public models: frozen, and strict about names."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable model in which an unknown field is an error rather than silently ignored."""

    # The input would be quoted in errors, and they end up in logs: it may hold passwords, bodies and hidden recipients.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
