"""The ways to learn, by name."""

from unmask.methods.byol import BYOL
from unmask.methods.dino import DINO
from unmask.methods.mae import MAE
from unmask.methods.simclr import SimCLR, SimCLRv2

METHODS = {"mae": MAE, "simclr": SimCLR, "simclr-v2": SimCLRv2, "byol": BYOL, "dino": DINO}
