"""Run the network in fixed point: the reference, and the protocol that a backend fulfils."""
