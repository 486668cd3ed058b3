"""Golden files: safetensors with F32, I32 and U8 tensors.

A float tensor <key> is stored whole if it is small, else sampled (hashgen.sample), beside <key>.shape (I32) and
<key>.stat = mean and rms of the entire tensor, so that a value between the samples cannot go wrong unseen.
"""
import os

import numpy as np
from safetensors.numpy import save_file

from . import hashgen


class Store:
    def __init__(self, limit):
        self.limit, self.tensors = limit, {}

    def add(self, key, x):
        x = np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, np.float64)
        assert key not in self.tensors and np.isfinite(x).all(), key
        self.tensors[key] = hashgen.sample(key, x, self.limit).astype(np.float32)
        self.tensors[key + ".shape"] = np.asarray(x.shape, np.int32)
        self.tensors[key + ".stat"] = np.asarray([x.mean(), np.sqrt((x * x).mean())], np.float32)

    def add_plain(self, key, x, dtype):
        assert key not in self.tensors, key
        self.tensors[key] = np.ascontiguousarray(x, dtype)

    def write(self, path, about):
        save_file(dict(sorted(self.tensors.items())), path, metadata={"about": about})
        os.chmod(path, 0o644)
