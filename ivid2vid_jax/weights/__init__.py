"""Every checkpoint format there is: the name rule, safetensors, pipeline folders, inflation. The only place that knows
PyTorch's names and layouts.
"""
