"""The replay: frames stored once, n-step returns made when sampling, exact priorities."""
