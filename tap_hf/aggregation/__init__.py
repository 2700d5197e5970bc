"""The server's step: which updates it takes, and how it averages them."""
