"""What all sections of the configuration, of clusters and of experiments have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

# More than any machine has cores; each costs a stack.
MOST_THREADS = 1024
_MOST_INT = 2**63 - 1
_LEAST_FLOAT, _MOST_FLOAT = 1e-37, 1e37


class Section(BaseModel):
    """Strict, and fixed once it is read; numbers are such that 64-bit integers and 32-bit floats hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_number(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and abs(number) > _MOST_INT:
                raise ValueError(f"a number must be less than 2 ** 63, not {number:.3g}")
            if isinstance(number, float) and number and not _LEAST_FLOAT <= abs(number) <= _MOST_FLOAT:
                raise ValueError(f"a number must be 0 or from {_LEAST_FLOAT:g} to {_MOST_FLOAT:g}, not {number:g}")
        return value
