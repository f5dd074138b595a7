"""Values of torch-fidelity and prdc on features drawn here, for tests/metrics/fixtures/peers.json.

  python benchmarks/parity/metrics.py > tests/metrics/fixtures/peers.json

runs in the environment of benchmarks/parity/requirements.txt; tests/metrics/test_peers.py draws the same features and
compares.
"""

import json

import numpy as np
import prdc
import torch
import torchvision_python  # noqa: F401
from torch_fidelity import metric_fid, metric_isc, metric_kid


def features() -> tuple[np.ndarray, np.ndarray]:
    """Draws features of two sets of images; the test has the same lines."""
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(32, 32)) / 6
    images = rng.normal(size=(700, 32)) @ mix + 0.2
    reference = rng.normal(size=(900, 32)) @ mix
    return images.astype(np.float32), reference.astype(np.float32)


def main() -> None:
    """Prints the values as JSON."""
    images, reference = features()
    x, y = torch.from_numpy(images), torch.from_numpy(reference)
    statistics = [metric_fid.fid_features_to_statistics(z.double()) for z in (x, y)]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    kid = metric_kid.kid_features_to_metric(
        x, y, kid_subsets=20, kid_subset_size=300, rng_seed=2020, verbose=False
    )
    isc = metric_isc.isc_features_to_metric(x, splits=10, shuffle=True, rng_seed=2020)
    neighbors = {
        f"k={k}": {
            name: float(value)
            for name, value in prdc.compute_prdc(
                reference.astype(np.float64), images.astype(np.float64), k
            ).items()
        }
        for k in (3, 5)
    }
    print(
        json.dumps(
            {"fd": fid, "kid": kid, "is": isc, "neighbors": neighbors}, indent=2, default=float
        )
    )


if __name__ == "__main__":
    main()
