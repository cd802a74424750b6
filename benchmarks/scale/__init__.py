"""What the coordinator costs at 8 to 1,024 GPUs, by simulation: see docs/scale.md."""
