"""The ways to learn, by name."""

from unmask.methods.beit import BEiT
from unmask.methods.dvae import DVAE
from unmask.methods.mae import MAE

METHODS = {"mae": MAE, "beit": BEiT, "dvae": DVAE}
