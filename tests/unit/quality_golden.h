/* Written by quality_oracle.py with scikit-image 0.26.0 and FFmpeg 5.1.9-0+deb12u1. */
static const struct {
    int frames, height, width, noise, seed;
    double psnr, psnr_clip, ssim, ffmpeg_frames, ffmpeg_clip;
} golden[] = {
    {3, 40, 56, 4, 1, 41.2005835609, 41.1997920227, 0.976345896491, 41.2, 41.199792},
    {2, 11, 11, 60, 2, 18.8023713645, 18.7973811585, 0.207436152529, 18.8, 18.797381},
    {1, 37, 53, 255, 3, 9.2204737435, 9.2204737435, 0.0232204560421, 9.22, 9.220474},
    {4, 64, 48, 1, 4, 51.1914015148, 51.1913444564, 0.997632807119, 51.1925, 51.191344},
};
