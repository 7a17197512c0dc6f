"""Example networks: two trained on handwritten digits (`nets`), and untrained ones for the tests (`zoo`)."""
