"""The mathematics of diffusion: noise schedules, samplers, guidance. Knows no checkpoint and no file.

Everything is written in variance-preserving coordinates, x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.
"""
