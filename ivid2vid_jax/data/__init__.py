"""Training data: triplets (clip, instruction, edited clip), their sources, files and loader."""
