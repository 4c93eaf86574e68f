"""Other programs that load this package's networks; nothing here is imported unless asked for."""
