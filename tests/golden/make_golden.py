"""Regenerates everything under tests/golden/data from the reference implementations. See README.md for the set-up.

    python make_golden.py --old-diffusers FOLDER [--only text,dit,...]
"""
import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import time

import numpy as np
import torch

from oracle import models, pipeline, prompts, solvers, stages
from oracle.store import Store

DATA = os.path.join(models.HERE, "data")
PACKAGES = ["torch", "diffusers", "transformers", "sentencepiece", "ftfy", "numpy", "safetensors"]


def path(name):
    return os.path.join(DATA, name)


def randn(cases, store):
    for case in cases["randn"]:
        torch.manual_seed(int(case["seed"]))  # a string: 64 bits do not fit the numbers of JSON
        store.add_plain(f"randn/{case['seed']}/{case['n']}", torch.randn(case["n"]).numpy(), np.float32)


def names():
    """Every tensor of each model in the names of diffusers and transformers: text, one line per tensor."""
    for name in models.load_json("models.json")["models"]:
        cfg = models.config(name)
        if name in ("A_bf16", "A_f16"):
            continue  # the tensors of A
        with open(path(f"names_{name}.txt"), "w") as f:
            for part in ("transformer", "text_encoder", "vae"):
                for tensor, shape in models.tensor_list(cfg, part) if cfg.get(part) else []:
                    f.write(f"{part} {tensor} {' '.join(map(str, shape))}\n")


def write_prompts():
    with open(path("prompts.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=True) for r in prompts.golden(path("spiece.model"))) + "\n]\n")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--old-diffusers", required=True, help="folder that holds the package diffusers 0.35.2")
    p.add_argument("--only", help="comma separated groups; the others keep their files")
    p.add_argument("--retrain", action="store_true", help="train spiece.model anew although it exists")
    args = p.parse_args()
    torch.set_num_threads(1)  # sums in one order
    os.makedirs(DATA, exist_ok=True)
    cases = models.load_json("cases.json")
    spiece = path("spiece.model")
    if args.retrain or not os.path.exists(spiece):
        prompts.train_spiece(spiece)

    groups = {
        "text": lambda s: stages.text(cases, s),
        "dit": lambda s: stages.dit(cases, s),
        "vae": lambda s: stages.vae(cases, s),
        "schedule": lambda s: solvers.schedules(cases, s, args.old_diffusers),
        "solver": lambda s: solvers.trajectories(cases, s, args.old_diffusers),
        "randn": lambda s: randn(cases, s),
        "pipeline": lambda s: pipeline.run(cases, s, args.old_diffusers, spiece),
    }
    only = args.only.split(",") if args.only else [*groups, "names", "prompts"]
    for group in only:
        start = time.time()
        if group == "names":
            names()
        elif group == "prompts":
            write_prompts()
        else:
            store = Store(cases["sample"])
            groups[group](store)
            store.write(path(group + ".safetensors"), "golden values, see tests/golden/README.md")
        print(f"{group}: {time.time() - start:.1f} s", flush=True)
    manifest = {
        "made": datetime.date.today().isoformat(),
        "by": "tests/golden/make_golden.py",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "also": {"diffusers": "0.35.2, scheduling_unipc_multistep.py only: sigma grid A"},
        "precision": "float64 inside, stored as float32 (oracle/double.py)",
        "bf16_error_of_references": stages.bf16_errors(cases),
        "files": {f: os.path.getsize(path(f)) for f in sorted(os.listdir(DATA)) if f != "manifest.json"},
    }
    with open(path("manifest.json"), "w") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
