"""Tasks: data, network and loss, in four named splits."""
