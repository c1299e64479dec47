"""Where records and the journal are kept."""
