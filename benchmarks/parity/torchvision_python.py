"""Makes torchvision importable where its compiled operations do not load (a build for CUDA, say): import this first.

The peers need its Python parts alone, such as the definition of Inception-v3.
"""

import sys
import types

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("not needed"))
