"""Files that people export from a provider's own pages: what they say of which days, and when that cannot be told."""
