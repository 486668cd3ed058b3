"""Runs the reference implementations in float64 without touching their code.

Both libraries cast to float32 by name at sensitive places (norm statistics, RoPE tables, the sinusoid of the timestep,
upsampling). For an oracle that is a loss: a float32 engine held to 1e-5 needs a reference that is clearly better.
Inside double_precision(), .float() and .to(torch.float32) leave a float64 tensor as it is and float32 aranges are made
in float64. What is computed, and in which order, remains the libraries' own.
"""
import contextlib

import torch


@contextlib.contextmanager
def double_precision():
    to_float, to, arange = torch.Tensor.float, torch.Tensor.to, torch.arange

    def float_(self, *args, **kwargs):
        return self if self.dtype == torch.float64 else to_float(self, *args, **kwargs)

    def to_(self, *args, **kwargs):
        if self.dtype == torch.float64:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return to(self, *args, **kwargs)

    def arange_(*args, **kwargs):
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return arange(*args, **kwargs)

    torch.Tensor.float, torch.Tensor.to, torch.arange = float_, to_, arange_
    try:
        with torch.no_grad():
            yield
    finally:
        torch.Tensor.float, torch.Tensor.to, torch.arange = to_float, to, arange
