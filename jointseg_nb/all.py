"""Every name of every room, for notebooks: `from jointseg_nb.all import *`."""
# All but commands and bench, which are for the shell. Written by hand: it has nothing to teach, and nbdev would export an `__all__` that hides the names imported here.
from jointseg_nb.fundus import *
from jointseg_nb.blocks import *
from jointseg_nb.attention import *
from jointseg_nb.agents import *
from jointseg_nb.data import *
from jointseg_nb.photos import *
from jointseg_nb.cache import *
from jointseg_nb.datasets import *
from jointseg_nb.check import *
from jointseg_nb.noise import *
from jointseg_nb.engine import *
from jointseg_nb.recipes import *
from jointseg_nb.runs import *
from jointseg_nb.losses import *
from jointseg_nb.cooperate import *
from jointseg_nb.evaluate import *
from jointseg_nb.figures import *
from jointseg_nb.fit import *
from jointseg_nb.session import *
from jointseg_nb.views import *
from jointseg_nb.lab import *
from jointseg_nb.export import *
