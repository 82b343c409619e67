"""What posterior samples say about new inputs."""
