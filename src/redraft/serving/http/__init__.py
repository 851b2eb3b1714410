"""The HTTP server: OpenAI's endpoints in FastAPI, its guard, and uvicorn around them."""
