"""The noise schedule, read from a pipeline folder's `scheduler_config.json`."""

import dataclasses

import numpy as np

PREDICTIONS = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("scaled_linear", "linear")
SPACINGS = ("leading", "linspace", "trailing")


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Stable Diffusion's discrete schedule, under diffusers' names.

    Attributes:
        timestep_spacing: which of the training timesteps a sampler visits (Lin et al. 2023, arXiv
            2305.08891, table 2); None for the sampler's own default.
        steps_offset: added to the timesteps of "leading" spacing.
        set_alpha_to_one: whether DDIM's last step ends at alpha_bar = 1 instead of alpha_bar_0.
        rescale_betas_zero_snr: whether the last timestep is pure noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    def __post_init__(self):
        """Raises ValueError for a schedule that is not implemented."""
        supported = {
            "prediction_type": PREDICTIONS,
            "beta_schedule": BETA_SCHEDULES,
            "timestep_spacing": (*SPACINGS, None),
        }
        for name, choices in supported.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"scheduler config: {name}={getattr(self, name)!r} is not supported "
                    f"(only {', '.join(filter(None, choices))})"
                )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "scheduler config: rescale_betas_zero_snr needs prediction_type v_prediction "
                "(at SNR 0 the noise says nothing about the clip)"
            )

    @classmethod
    def from_json(cls, config: dict) -> "NoiseSchedule":
        """Reads the config of any diffusers scheduler; its class does not matter.

        Raises:
            ValueError: for an option that would change latents, or one that is not implemented.
        """
        for key in ("clip_sample", "thresholding", "use_karras_sigmas", "trained_betas"):
            if config.get(key):
                raise ValueError(
                    f"scheduler config: {key}={config[key]!r} is not supported for latents; "
                    "set it to false"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in config.items() if key in names and value is not None}
        return cls(**values)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar_t = prod_{s <= t} (1 - beta_s), float64 [num_train_timesteps].

        With zero-terminal SNR the last value is exactly 0.
        """
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        roots = np.linspace(self.beta_start**power, self.beta_end**power, self.num_train_timesteps)
        alpha_bar = np.cumprod(1 - roots ** (1 / power))
        if self.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1
            root = np.sqrt(alpha_bar)
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alpha_bar
