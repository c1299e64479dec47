"""A certificate authority of the site, for who has none: certificates for hosts, made and installed there."""
