"""What a request meets before a route does, in `app.py`'s order. A connection meets `connections` first of all."""
