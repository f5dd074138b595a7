# The public names, written once: `lazy_loader` reads them, and so do type checkers.
from .store import (
    Checkpoint as Checkpoint,
    CheckpointStore as CheckpointStore,
)
