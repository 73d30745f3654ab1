"""The ground under everything: which machines there are, what is in this one, ttnn's ops seen from outside."""
