"""Names of diffusers, kohya and AUTOMATIC1111's web UI for things that have another name here."""

# Settings of an edit: name in diffusers -> ours.
SETTINGS = {
    "prompt": "instruction",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "guidance_scale": "text_scale",
    "image_guidance_scale": "video_scale",
    "guidance_rescale": "rescale",
    "num_frames": "frames",
    "scheduler": "sampler",
}
# Options of training: name in kohya's and diffusers' scripts -> ours.
TRAINING = {
    "learning_rate": "optim.lr",
    "train_batch_size": "loader.batch",
    "max_train_steps": "steps",
    "gradient_accumulation_steps": "optim.accumulation",
    "resolution": "loader.size",
    "output_dir": "output",
    "pretrained_model_name_or_path": "model",
}
# Scheduler class of a pipeline folder -> the sampler of diffusion/samplers.py that implements it.
SCHEDULER_CLASSES = {
    "DDIMScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpm++",
}
SAMPLER_HELP = f"{', '.join(SCHEDULER_CLASSES.values())} (default: the model's)"
# Samplers: name in other tools -> ours.
SAMPLERS = {
    "euler_a": "euler_ancestral",
    "euler a": "euler_ancestral",
    "dpmpp_2m": "dpm++",
    "dpm++ 2m": "dpm++",
    "dpm++_2m": "dpm++",
    "dpmsolver++": "dpm++",
}
