"""A convolution and its gradients by their definition: the reference of the fast ones."""

from typing import Any

import numpy as np


def loops(x: Any, w: Any, dy: Any, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns y, dx and dw of a "SAME" convolution, one output pixel at a time, in float64."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    kh, kw = w.shape[:2]
    # "SAME" reaches beyond both edges alike; the odd row or column goes to the end.
    total = [
        max((out - 1) * stride + k - size, 0)
        for out, k, size in zip(dy.shape[1:3], (kh, kw), x.shape[1:3], strict=True)
    ]
    padded = np.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in total), (0, 0)))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(padded), np.zeros_like(w)
    for i, j in np.ndindex(dy.shape[1:3]):
        patch = (
            slice(None),
            slice(i * stride, i * stride + kh),
            slice(j * stride, j * stride + kw),
        )
        y[:, i, j] = np.einsum("bijc,ijcd->bd", padded[patch], w)
        dx[patch] += np.einsum("bd,ijcd->bijc", dy[:, i, j], w)
        dw += np.einsum("bijc,bd->ijcd", padded[patch], dy[:, i, j])
    top, left = total[0] // 2, total[1] // 2
    return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw
