"""Sigma schedules and solver trajectories, made by the schedulers of diffusers in float64."""
import importlib.util
import os

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from . import hashgen
from .double import double_precision


def old_unipc(folder):
    """UniPC of diffusers 0.35.2, whose sigma grid (A) is the one of Wan2.1 itself; newer releases changed it (B).

    Only this one file of the old release is loaded, as a module of the installed one."""
    path = os.path.join(folder, "diffusers", "schedulers", "scheduling_unipc_multistep.py")
    spec = importlib.util.spec_from_file_location("diffusers.schedulers.scheduling_unipc_0_35", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UniPCMultistepScheduler


def wan_sigmas(steps, shift):
    """get_sampling_sigmas of Wan2.1 (wan/utils/fm_solvers.py, Apache-2.0), which its DPM++ path uses: grid C."""
    sigma = np.linspace(1, 0, steps + 1)[:steps]
    return shift * sigma / (1 + (shift - 1) * sigma)


def make(solver, grid, steps, shift, old):
    """A scheduler with its timesteps set. sigmas become float64 but keep their float32 values, as the engine does."""
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    if solver == "unipc":
        s = {"A": old_unipc(old), "B": UniPCMultistepScheduler}[grid](**flow)
        s.set_timesteps(steps)
    elif solver == "dpm++":
        s = DPMSolverMultistepScheduler(**flow)
        s.set_timesteps(steps)
        if grid == "C":
            sigmas = wan_sigmas(steps, shift)
            s.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
            s.sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
    else:
        s = FlowMatchEulerDiscreteScheduler(shift=shift)
        s.set_timesteps(steps)
    s.sigmas = s.sigmas.double()
    return s


def schedules(cases, store, old):
    for case in cases["schedule"]:
        for steps in cases["schedule_steps"]:
            made = [make(case["solver"], case["grid"], steps, shift, old) for shift in case["shifts"]]
            key = f"schedule/{case['grid']}/{steps}/"
            store.add_plain(key + "sigmas", np.stack([s.sigmas.numpy() for s in made]), np.float32)
            store.add_plain(key + "timesteps", np.stack([s.timesteps.double().numpy() for s in made]), np.float32)


def velocity(x, i, name):
    """A smooth field with its own noise per step: every coefficient of a solver step shows in the result."""
    drift = torch.from_numpy(hashgen.uniform(f"solver:{name}:{i}", tuple(x.shape), 0.5)).double()
    return torch.tanh(0.7 * x) + drift


def trajectories(cases, store, old):
    n = cases["solver_numel"]
    for case in cases["solver"]:
        for steps in case["steps"]:
            for shift in case["shifts"]:
                with double_precision():
                    s = make(case["solver"], case["sigmas"], steps, shift, old)
                    x = torch.from_numpy(hashgen.normalish("solver:x", (1, n))).double()
                    out = []
                    for i, t in enumerate(s.timesteps):
                        x = s.step(velocity(x, i, case["name"]), t, x, return_dict=False)[0]
                        assert x.dtype == torch.float64
                        out.append(x[0].numpy().copy())
                store.add_plain(f"solver/{case['name']}/{steps}/{shift:g}", np.stack(out), np.float32)
