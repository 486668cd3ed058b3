"""Writes quality_golden.h: PSNR and SSIM of made-up videos as scikit-image and FFmpeg compute them.

    pip install scikit-image==0.26.0    # and ffmpeg in PATH
    python3 tests/unit/quality_oracle.py > tests/unit/quality_golden.h

The pixels follow from a hash, so that test_quality.c makes the same ones.
"""
import re
import subprocess
import sys
import tempfile

import numpy as np
import skimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

# frames, height, width, noise of b against a, seed
CASES = [(3, 40, 56, 4, 1), (2, 11, 11, 60, 2), (1, 37, 53, 255, 3), (4, 64, 48, 1, 4)]
M = np.uint64


def hash64(x):
    with np.errstate(over="ignore"):
        x = x + M(0x9E3779B97F4A7C15)
        x = (x ^ (x >> M(30))) * M(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> M(27))) * M(0x94D049BB133111EB)
        return x ^ (x >> M(31))


def video(frames, h, w, noise, seed):
    f, y, x, c = np.meshgrid(*(np.arange(n, dtype=np.int64) for n in (frames, h, w, 3)), indexing="ij")
    ramp = (3 * x + 5 * y + 7 * f + 40 * c) % 512
    a = np.where(ramp > 255, 511 - ramp, ramp)
    i = np.arange(a.size, dtype=np.uint64).reshape(a.shape)
    n = (hash64(i + M(seed << 32)) >> M(32)).astype(np.int64) % (2 * noise + 1) - noise
    # every second row is equal: windows without any error belong to the test
    return a.astype(np.uint8), np.clip(a + np.where(y % 4 == 0, 0, n), 0, 255).astype(np.uint8)


def ffmpeg_psnr(a, b):
    """Mean over frames of psnr_avg, and the filter's own average."""
    frames, h, w, _ = a.shape
    with tempfile.TemporaryDirectory() as d:
        for name, x in (("a", a), ("b", b)):
            x.tofile(f"{d}/{name}.rgb")
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", "25", "-i"]
        log = subprocess.run(
            ["ffmpeg", *raw, f"{d}/a.rgb", *raw, f"{d}/b.rgb", "-lavfi",
             f"[0]format=gbrp[x];[1]format=gbrp[y];[x][y]psnr=stats_file={d}/log", "-f", "null", "-"],
            check=True, capture_output=True, text=True).stderr
        each = [float(m) for m in re.findall(r"psnr_avg:([\d.]+)", open(f"{d}/log").read())]
    assert len(each) == frames
    return np.mean(each), float(re.search(r"average:([\d.]+)", log).group(1))


version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split()[2]
print(f"/* Written by quality_oracle.py with scikit-image {skimage.__version__} and FFmpeg {version}. */")
print("static const struct {\n    int frames, height, width, noise, seed;\n"
      "    double psnr, psnr_clip, ssim, ffmpeg_frames, ffmpeg_clip;\n} golden[] = {")
for case in CASES:
    a, b = video(*case)
    psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b)])
    clip = peak_signal_noise_ratio(a, b, data_range=255)
    ssim = np.mean([structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                          data_range=255, channel_axis=2) for x, y in zip(a, b)])
    frames, average = ffmpeg_psnr(a, b)
    print("    {" + ", ".join(map(str, case)) + f", {psnr:.12g}, {clip:.12g}, {ssim:.12g}, {frames:.8g}, {average:.8g}}},")
print("};")
sys.stdout.flush()
