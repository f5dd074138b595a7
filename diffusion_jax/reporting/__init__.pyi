# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from . import pictures as pictures
from .notebook import Picture as Picture, show as show
