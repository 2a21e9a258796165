"""The engine behind a server that speaks OpenAI's interface."""
