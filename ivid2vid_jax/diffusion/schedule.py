"""The noise schedule of a pipeline folder's scheduler_config.json."""

import dataclasses

import numpy as np

PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Stable Diffusion's discrete schedule, under diffusers' names.

    timestep_spacing: which of the training timesteps a sampler visits (Lin et al. 2023, arXiv 2305.08891, table 2);
    None leaves it to the sampler's own default.
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
        for name, choices in (
            ("prediction_type", PREDICTIONS),
            ("beta_schedule", ("scaled_linear", "linear")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"scheduler config: {name}={getattr(self, name)!r} is not supported (only {', '.join(choices)})"
                )
        if self.timestep_spacing not in (None, *SPACINGS):
            raise ValueError(
                f"scheduler config: timestep_spacing={self.timestep_spacing!r} is not one of {', '.join(SPACINGS)}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "scheduler config: rescale_betas_zero_snr needs prediction_type v_prediction (noise alone tells nothing at SNR 0)"
            )

    @classmethod
    def from_json(cls, config: dict) -> "NoiseSchedule":
        """Reads any diffusers scheduler's config: its betas count, whatever its class.

        Raises ValueError for pixel-space switches that would change latents.
        """
        for key in ("clip_sample", "thresholding", "use_karras_sigmas", "trained_betas"):
            if config.get(key):
                raise ValueError(
                    f"scheduler config: {key}={config[key]!r} is not supported for latents; set it to false"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **{key: value for key, value in config.items() if key in names and value is not None}
        )

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Cumulative signal share alpha_bar_t, float64 [num_train_timesteps]; exactly 0 at the end for zero-terminal SNR."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        betas = np.linspace(
            self.beta_start**power, self.beta_end**power, self.num_train_timesteps
        ) ** (1 / power)
        alpha_bar = np.cumprod(1 - betas)
        if self.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1
            root = np.sqrt(alpha_bar)
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alpha_bar
