"""What runs inside a hospital or an observatory."""
