"""The mathematics of diffusion: schedules, losses, guidance, samplers, inversion. No files.

Everything is written in variance-preserving coordinates,

    x_t = alpha_t x_0 + sigma_t eps,    alpha_t^2 + sigma_t^2 = 1,    alpha_bar_t = alpha_t^2,

and latents of clips are [B, T, h, w, C].
"""
