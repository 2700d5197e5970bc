"""The Hub: publish personalized adapters, get them back, predict with them, go on from them."""
