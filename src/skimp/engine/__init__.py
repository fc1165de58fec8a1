"""The engine: a planned model that reads prompts and decodes at the speed of its bytes."""

from skimp.engine.engine import Engine
from skimp.engine.generation import Answer, Generation, Request, Timing
from skimp.engine.sampling import Sampling
from skimp.engine.state import State

__all__ = ["Answer", "Engine", "Generation", "Request", "Sampling", "State", "Timing"]
