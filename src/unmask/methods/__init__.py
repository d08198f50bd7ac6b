"""The ways to learn, by name."""

from unmask.methods.mae import MAE

METHODS = {"mae": MAE}
