"""The Python half of the golden tests: weights, inputs and reference values (see ../README.md)."""
