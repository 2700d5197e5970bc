"""The Hub: push and pull personalized adapters, predict with them, adopt them for a new client."""
