"""The ways to learn, by name."""

from unmask.methods.beit import BEiT
from unmask.methods.byol import BYOL
from unmask.methods.dino import DINO
from unmask.methods.dvae import DVAE
from unmask.methods.mae import MAE
from unmask.methods.moco import MoCo, MoCoV2
from unmask.methods.moco_v3 import MoCoV3
from unmask.methods.simclr import SimCLR, SimCLRv2

METHODS = {
    "mae": MAE,
    "moco": MoCo,
    "moco-v2": MoCoV2,
    "moco-v3": MoCoV3,
    "simclr": SimCLR,
    "simclr-v2": SimCLRv2,
    "byol": BYOL,
    "dino": DINO,
    "beit": BEiT,
    "dvae": DVAE,
}
