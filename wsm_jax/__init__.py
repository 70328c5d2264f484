"""WSM-JAX: train at a constant learning rate, merge checkpoints, get the effect of a learning-rate decay."""
