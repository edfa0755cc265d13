"""What runs the base and its adapters."""
