"""The built-in sample data: the help desk of Larkmoor, an invented maker of electric bikes."""
