# For pyright: it infers the type of a ConfigDict's fields from the library's source, and which type
# it infers depends on the order in which it reads our files.

from . import config_dict as config_dict
from .config_dict import ConfigDict as ConfigDict, FieldReference as FieldReference
