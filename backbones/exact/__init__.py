"""Models in closed form: Gaussian targets, mixtures of Gaussians, and a stationary Gaussian model of photographs."""
