"""The ways to learn, by name."""

from unmask.methods.dino import DINO
from unmask.methods.mae import MAE

METHODS = {"mae": MAE, "dino": DINO}
