"""A model of the protocol, and a checker that walks through all of its states."""

from protocol_model.checker import Report, check
from protocol_model.options import Options
from protocol_model.world import ViolationError

__all__ = ["Options", "Report", "ViolationError", "check"]
