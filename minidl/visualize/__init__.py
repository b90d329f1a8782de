"""Pictures of training runs and of what networks see; needs matplotlib."""
