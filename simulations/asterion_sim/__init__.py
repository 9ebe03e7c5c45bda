"""The same code over many virtual sites on one machine."""
